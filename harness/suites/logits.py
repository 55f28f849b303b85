"""Logits of a window by parts of its positions, so that they are never in memory as a whole.

The blocks of a model run once; then its own forward pass runs over parts of what they gave, so that
whatever a model does with its logits (scaling, soft capping) is done. A small window is computed as
a whole, as it always was: parts of a product may differ from the whole in the last bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.suites.at_once import WHOLE_BYTES


class Shaped(Protocol):
    """Logits in any form: their shape is batch, positions and vocabulary."""

    @property
    def shape(self) -> torch.Size: ...


def parts(
    logits: Shaped, elements: int, most: int, positions: int | None = None
) -> Iterator[slice]:
    """Yield the first `positions` (None: all) by consecutive slices.

    A slice has at most `most` positions in all rows of the batch, but one in each row at least, and
    no more of them than give `elements` logits.
    """
    batch, length, vocabulary = logits.shape
    positions = length if positions is None else positions
    step = max(1, min(most // batch, -(-elements // (batch * vocabulary))))
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))


class Logits:
    """Logits [batch, positions, vocabulary] of ids [batch, positions], computed when they are read.

    logits[:, start:stop] runs the head on these positions.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        self._model, self._ids = model, ids
        self._whole: Tensor | None = None
        self._body = _body(model, ids)
        self._given: Any = None
        if self._body is None:
            self._whole = model(input_ids=ids, use_cache=False).logits
            self._vocabulary = self._whole.shape[-1]
        else:
            self._run_blocks()

    @property
    def device(self) -> Any:
        return self._ids.device

    @property
    def shape(self) -> torch.Size:
        """Batch, positions and vocabulary."""
        return torch.Size([*self._ids.shape, self._vocabulary])

    @property
    def nbytes(self) -> int:
        """Bytes that are kept: of the hidden states, or of the whole logits."""
        kept = self._given["last_hidden_state"] if self._whole is None else self._whole
        return int(kept.nbytes)

    def __getitem__(self, where: tuple[slice, slice]) -> Tensor:
        rows, positions = where
        if self._whole is not None:
            return self._whole[where]
        start, stop, _ = positions.indices(self._ids.shape[1])
        with _Forward(self._body, lambda *_, **__: _part(self._given, slice(start, stop))):
            made: Tensor = self._model(input_ids=self._ids[:, start:stop], use_cache=False).logits
        return made[rows]

    def _run_blocks(self) -> None:
        """Keep what the blocks give; the whole logits if the model does not read it from there."""
        original = self._body.forward

        def once(*arguments: Any, **options: Any) -> Any:
            self._given = original(*arguments, **options)
            return _part(self._given, slice(0, 1))

        with _Forward(self._body, once):
            made = self._model(input_ids=self._ids, use_cache=False).logits
        self._vocabulary = made.shape[-1]
        if made.shape[1] != 1:
            self._whole = made


class _Forward:
    """Context: another forward function of a module, whose hooks and attributes stay."""

    def __init__(self, module: Any, forward: Callable[..., Any]) -> None:
        self._module, self._forward = module, forward

    def __enter__(self) -> None:
        self._before = self._module.__dict__.get("forward")
        self._module.__dict__["forward"] = self._forward

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del self._module.__dict__["forward"]
        else:
            self._module.__dict__["forward"] = self._before


def _body(model: Any, ids: Tensor) -> Any:
    """The module with the blocks; None if the logits are small, or there is no such module."""
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None or ids.numel() * vocabulary * model.dtype.itemsize <= WHOLE_BYTES:
        return None
    found = model.get_decoder()
    return None if found is model else found


def _part(given: Any, positions: slice) -> Any:
    """An output of the blocks with the hidden states of some positions."""
    found = copy.copy(given)
    found["last_hidden_state"] = given["last_hidden_state"][:, positions]
    return found
