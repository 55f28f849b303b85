"""Memory of the quantized weights of a block, while they are made and while they are packed."""

from __future__ import annotations

from collections.abc import Sequence

from quant.budget import AnyScheme, Budget


def quantized_bytes(
    layers: Sequence[tuple[int, int]], schemes: Sequence[AnyScheme]
) -> tuple[int, int]:
    """Return the bytes of a block's layers (outputs, inputs) with a byte a code, and packed.

    schemes are those that layers may have; each layer counts with the one that takes most.
    """
    stored = [max(int(n * m * s.bits_per_weight(n) / 8) for s in schemes) for m, n in layers]
    held = sum(max(_held(each, m, n) for each in schemes) for m, n in layers)
    # Measured: the stored bytes, plus the largest layer once more.
    return held, sum(stored) + max(stored)


def _held(scheme: AnyScheme, outputs: int, inputs: int) -> int:
    """Bytes of a solved layer: a byte a code with its grids, or tensors as they are stored."""
    if isinstance(scheme, Budget):
        return scheme.most_bytes(outputs, inputs)
    return outputs * inputs + outputs * scheme.overhead(inputs) // 8


def search_numbers(layers: Sequence[tuple[int, int]], schemes: Sequence[AnyScheme]) -> int:
    """Return the most numbers in memory while the grids of a layer are searched."""
    return max(each.search_numbers(inputs) for _, inputs in layers for each in schemes)
