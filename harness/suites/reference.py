"""The full-precision model of a comparison: its distributions, made once or read.

Distributions over large vocabularies are compressed (harness.suites.compressed) whether or not they
are kept, so that a figure does not depend on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.data import vocabulary
from harness.suites import compressed
from harness.suites.at_once import LOGITS_AT_ONCE, POSITIONS_AT_ONCE
from harness.suites.base import SuiteContext
from harness.suites.comparison import Comparison
from harness.suites.compressed import EXACT_VOCABULARY, Compressed, compress
from harness.suites.logits import Logits, parts
from harness.suites.noise import NoisyLogits

# Raise it when kept files come to hold something else.
VERSION = 1
# Positions on which the model is compared with itself under noise: whole windows, at least one.
NOISE_POSITIONS = 4096

Made = TypeVar("Made", Compressed, Comparison)


class Reference:
    """The full-precision model, loaded when something is not kept."""

    def __init__(self, context: SuiteContext) -> None:
        self._context = context
        self._model: Any = None
        self.compresses = vocabulary.size_of(context.model) > EXACT_VOCABULARY

    @contextmanager
    def making(self, windows: Sequence[Tensor]) -> Iterator[None]:
        """Context: to be around the use of windows and of their noise.

        Another process that makes the same is waited for.
        """
        kept = self._context.kept
        wanted = [_noise_name(windows)]
        if self.compresses:
            wanted += map(_window_name, windows)
        if kept is None or all(map(kept.has, wanted)):
            yield
            return
        with kept.lock():
            yield

    @torch.inference_mode()
    def window(self, tokens: Tensor) -> Logits | Compressed:
        """The distributions after each of tokens [length]."""
        if not self.compresses:
            return self._logits(tokens)
        return self._kept(
            _window_name(tokens),
            Compressed.from_bytes,
            lambda: _compressed(self._logits(tokens), _seed(tokens)),
        )

    @torch.inference_mode()
    def noise(self, windows: Sequence[Tensor]) -> Comparison:
        """The model against itself with the rounding noise of bfloat16, on `noise_windows`."""
        return self._kept(_noise_name(windows), Comparison.from_bytes, lambda: self._noise(windows))

    def _noise(self, windows: Sequence[Tensor]) -> Comparison:
        comparison = Comparison()
        for tokens in noise_windows(windows):
            ids = tokens[None].to(self._context.device)
            comparison.add(self.window(tokens), NoisyLogits(self._loaded(), ids, _seed(tokens)))
        return comparison

    def _kept(self, name: str, read: Callable[[bytes], Made], make: Callable[[], Made]) -> Made:
        kept = self._context.kept
        found = None if kept is None else kept.get(name)
        if found is not None:
            return read(found)
        made = make()
        if kept is not None:
            kept.put(name, made.to_bytes())
        return made

    def _logits(self, tokens: Tensor) -> Logits:
        return Logits(self._loaded(), tokens[None].to(self._context.device))

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self._context.load_baseline()
        return self._model


def noise_windows(windows: Sequence[Tensor]) -> Sequence[Tensor]:
    """The first windows, with at most NOISE_POSITIONS positions, but one at least."""
    ends = accumulate(map(len, windows))
    return windows[: max(1, sum(end <= NOISE_POSITIONS for end in ends))]


def _compressed(logits: Logits, seed: int) -> Compressed:
    every = parts(logits, LOGITS_AT_ONCE, POSITIONS_AT_ONCE)
    return compressed.together([compress(logits[:, part][0], part.start, seed) for part in every])


def _window_name(tokens: Tensor) -> str:
    return f"divergence-{VERSION}-{_digest([tokens])}"


def _noise_name(windows: Sequence[Tensor]) -> str:
    return f"noise-{VERSION}-{_digest(noise_windows(windows))}"


def _digest(windows: Sequence[Tensor]) -> str:
    """A hash of the windows' lengths and tokens."""
    found = hashlib.sha256()
    for tokens in windows:
        found.update(len(tokens).to_bytes(8, "little"))
        found.update(tokens.to(torch.int64).numpy().tobytes())
    return found.hexdigest()[:32]


def _seed(tokens: Tensor) -> int:
    """32 bits that depend on the window alone."""
    return int(_digest([tokens])[:8], 16)
