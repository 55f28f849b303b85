"""The divergences of two models over windows, and what is reported of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from safetensors.torch import load, save
from torch import Tensor

from harness.suites.at_once import LOGITS_AT_ONCE, POSITIONS_AT_ONCE
from harness.suites.compressed import Compressed
from harness.suites.confidences import CONFIDENCES
from harness.suites.distributions import Compared, compare, joined
from harness.suites.logits import Logits, Shaped, parts
from harness.suites.noise import NoisyLogits
from harness.suites.scoring import Score

LEVELS = {"p10": 0.10, "p50": 0.50, "p90": 0.90, "p99": 0.99}


@dataclass
class Comparison:
    """Two models on the same windows: KL(first || second) and top-1 disagreement by position."""

    windows: list[Compared] = field(default_factory=list)
    compressed: Compressed | None = None  # the last window's reference, if it is compressed

    def add(
        self, first: Tensor | Logits | Compressed, second: Tensor | Logits | NoisyLogits
    ) -> None:
        """Add one window: the last rows of logits [batch, positions, vocabulary] of both models."""
        both: tuple[Shaped, Shaped] = (first, second)
        larger = max(both, key=lambda each: each.shape[0])
        found = []
        for part in parts(larger, LOGITS_AT_ONCE, POSITIONS_AT_ONCE):
            other = second[-1:, part][0]
            if isinstance(first, Compressed):
                self.compressed = first
                found.append(first.compared(part, other))
            else:
                found.append(compare(first[-1:, part][0], other))
        self.windows.append(joined(found))

    @property
    def divergence(self) -> list[Tensor]:
        """float64 [positions] of each window, nats."""
        return [each.divergence for each in self.windows]

    @property
    def flips(self) -> list[int]:
        """Positions of each window whose most likely token differs."""
        return [int(each.flipped.sum()) for each in self.windows]

    @property
    def mean(self) -> Score:
        """Mean KL per position, with its standard error over windows."""
        return Score([float(each.sum()) for each in self.divergence], self._positions)

    @property
    def flip_rate(self) -> Score:
        return Score([float(each) for each in self.flips], self._positions)

    @property
    def quantiles(self) -> dict[str, float]:
        values = torch.cat(self.divergence)
        return {name: torch.quantile(values, level).item() for name, level in LEVELS.items()}

    @property
    def p999(self) -> float:
        """The 99.9th percentile."""
        return torch.quantile(torch.cat(self.divergence), 0.999).item()

    @property
    def largest(self) -> float:
        return max(float(each.max()) for each in self.divergence)

    @property
    def sampling_error(self) -> float | None:
        """Standard error of the mean that compression adds; None where nothing is compressed."""
        total = _total([each.variance for each in self.windows])
        return None if total is None else math.sqrt(total) / sum(self._positions)

    @property
    def certain(self) -> float | None:
        """What the mean is at least, whatever was sampled; None where nothing is compressed."""
        total = _total([each.certain for each in self.windows])
        return None if total is None else total / sum(self._positions)

    def by_confidence(self) -> list[tuple[Score, Score] | None]:
        """Divergence and flips of positions with a confidence in each interval of CONFIDENCES.

        None for an interval without a position.
        """
        edges = torch.tensor(CONFIDENCES[1:-1], dtype=torch.float64)
        which = [torch.bucketize(each.confidence, edges, right=True) for each in self.windows]
        found: list[tuple[Score, Score] | None] = []
        for interval in range(len(edges) + 1):
            inside = [each == interval for each in which]
            counts = [int(each.sum()) for each in inside]
            if not any(counts):
                found.append(None)
                continue
            pairs = list(zip(self.windows, inside, strict=True))
            nats = [float(each.divergence[chosen].sum()) for each, chosen in pairs]
            flips = [float(each.flipped[chosen].sum()) for each, chosen in pairs]
            found.append((Score(nats, counts), Score(flips, counts)))
        return found

    @property
    def _positions(self) -> list[int]:
        return [len(each) for each in self.divergence]

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {
            f"{number}.{each.name}": getattr(window, each.name)
            for number, window in enumerate(self.windows)
            for each in fields(Compared)
            if getattr(window, each.name) is not None
        }
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Comparison:
        """What `to_bytes` gave."""
        windows: dict[int, dict[str, Tensor]] = {}
        for name, values in load(data).items():
            number, _, field_name = name.partition(".")
            windows.setdefault(int(number), {})[field_name] = values
        return cls([Compared(**windows[number]) for number in sorted(windows)])


def _total(windows: Sequence[Tensor | None]) -> float | None:
    """The sum over the positions of all windows; None if a window has no values."""
    values = [each for each in windows if each is not None]
    return math.fsum(float(each.sum()) for each in values) if len(values) == len(windows) else None
