"""Bytes that transforms add to a memory plan, from the shapes of a block's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quant.transforms.base import NEVER, Transform

Shapes = Sequence[tuple[int, int]]  # (outputs, inputs) of every layer of a block
Chosen = Sequence[tuple[Transform, Any]]


def operator_bytes(layers: Shapes, chosen: Chosen) -> int:
    """Bytes of the operators that may be kept in front of a block's layers, one per layer."""
    kept = [each for each, options in chosen if each.keeps(options) != NEVER]
    return sum(each.kept_bytes(inputs) for each in kept for _, inputs in layers)


def search_bytes(layers: Shapes, chosen: Chosen, number: int) -> int:
    """Bytes of the matrices from which a change is chosen, in numbers of `number` bytes each."""
    together: dict[int, int] = {}  # outputs by inputs: layers of one input are given at once
    for outputs, inputs in layers:
        together[inputs] = together.get(inputs, 0) + outputs
    given = max(4 * outputs * inputs + number * inputs**2 for inputs, outputs in together.items())
    memories = [transform.memory for transform, _ in chosen]
    searched = max(
        each.weights * outputs * inputs + each.prepared * inputs**2
        for each in memories
        for outputs, inputs in layers
    )
    return given + number * searched


def rotation_bytes(layers: Shapes) -> int:
    """Bytes while the residual stream is rotated in the largest layer, in float64: its weight, the
    product with the norm's, and three steps of the rotation.
    """
    return 5 * 8 * max(outputs * inputs for outputs, inputs in layers)
