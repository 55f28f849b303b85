"""Bytes that transforms add to a memory plan, from the shapes of a block's layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quant.transforms.base import NEVER, Transform

Shapes = Sequence[tuple[int, int]]  # (outputs, inputs) of every layer of a block
Chosen = Sequence[tuple[Transform, Any]]


def operator_bytes(layers: Shapes, chosen: Chosen) -> int:
    """Bytes of the operators that may be kept in front of a block's layers, one per layer."""
    kept = [each for each, options in chosen if each.keeps(options) != NEVER]
    return sum(each.kept_bytes(inputs) for each in kept for _, inputs in layers)


def transform_bytes(layers: Shapes, chosen: Chosen, number: int, inside: int) -> int:
    """Bytes while changes are chosen and tried.

    number  bytes of each number of a matrix.
    inside  bytes of one batch inside the block.
    """
    together: dict[int, int] = {}  # outputs by inputs: layers of one input are given at once
    for outputs, inputs in layers:
        together[inputs] = together.get(inputs, 0) + outputs
    given = max(4 * outputs * inputs + number * inputs**2 for inputs, outputs in together.items())
    searched = max(
        each.memory.weights * outputs * inputs + each.memory.prepared * inputs**2
        for each, _ in chosen
        for outputs, inputs in layers
    )
    # The block runs; for a fold further in front inputs before and after it are kept.
    passes = 3 if any(each.folds_through for each, _ in chosen) else 1
    return given + number * searched + passes * inside


def rotation_bytes(layers: Shapes) -> int:
    """Bytes while the residual stream is rotated in the largest layer, in float64: its weight, the
    product with the norm's, and three steps of the rotation.
    """
    return 5 * 8 * max(outputs * inputs for outputs, inputs in layers)


def pruning_bytes(
    chosen: tuple[Transform, Any] | None, layers: Shapes, model: int, streams: int, inside: int
) -> Iterator[tuple[str, int]]:
    """Yield what is held, with its bytes, while parts of the model are scored.

    model    bytes of the whole model.
    streams  bytes of the hidden states of a window: after every block, and four times besides (at
             the first block, at the last, before a block, and without some of it).
    inside   bytes of one batch inside the largest block.
    """
    if chosen is None:
        return
    memory, windows = chosen[0].memory, chosen[1].windows
    yield "all blocks, while parts are scored", model
    yield "hidden states of the whole and the pruned model", windows * streams
    yield "windows inside a block", windows * inside
    numbers = [memory.weights * n * m + memory.prepared * m * m for n, m in layers]
    yield "the largest layer, its parts scored", 8 * max(numbers)  # float64


def rounding_bytes(chosen: Chosen, numbers: int) -> int:
    """Bytes while an operator rounds so many inputs, in float64."""
    return 0 if not any(each.rounds for each, _ in chosen) else 8 * numbers
