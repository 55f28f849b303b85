"""Bytes of the Hessians of a block, and of its outputs, from the shapes of its layers."""

from __future__ import annotations

from collections.abc import Sequence

from quant.tiling import MEMO_BYTES


def hessian_bytes(
    inputs: Sequence[int],
    routed: Sequence[Sequence[tuple[int, int]]],
    number: int,
    sequential: bool,
) -> int:
    """Bytes of the Hessians held at once, in numbers of `number` bytes each.

    inputs  of every layer; layers with one input share a Hessian, but that is known only when the
            model runs.
    routed  (inputs, layers that share it) of the experts' Hessians, by stage (ModelShape).
    """
    alone = [number * n * n for n in inputs]
    mixtures = [sum(number * n * n for n, _ in stage) for stage in routed]
    shared = sum(number * n * n * (layers - 1) for stage in routed for n, layers in stage)
    return max([*alone, *mixtures]) if sequential else sum(alone) - shared


def memo_bytes(layers: Sequence[tuple[int, int]], tokens: int, number: int) -> int:
    """Bytes of the outputs that are remembered between the passes of a block (calibrate.memo).

    layers  (outputs, inputs) of every layer; number  bytes of a number.
    """
    return min(MEMO_BYTES, number * tokens * sum(outputs for outputs, _ in layers))
