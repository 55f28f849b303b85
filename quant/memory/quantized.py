"""Memory of the quantized weights of a block, while they are made and while they are packed."""

from __future__ import annotations

from collections.abc import Sequence

from quant.scheme import Scheme


def quantized_bytes(
    layers: Sequence[tuple[int, int]], schemes: Sequence[Scheme]
) -> tuple[int, int]:
    """Return the bytes of a block's layers (outputs, inputs) with a byte a code, and packed.

    schemes are those that layers may have; each layer counts with the one that takes most.
    """
    codes = [outputs * inputs for outputs, inputs in layers]
    grids = [max(m * each.overhead(n) for each in schemes) // 8 for m, n in layers]
    stored = [max(int(n * m * s.bits_per_weight(n) / 8) for s in schemes) for m, n in layers]
    # Measured: the stored bytes, plus the largest layer once more.
    return sum(codes) + sum(grids), sum(stored) + max(stored)


def search_numbers(layers: Sequence[tuple[int, int]], schemes: Sequence[Scheme]) -> int:
    """Return the most numbers in memory while the grids of a layer are searched."""
    return max(each.search_numbers(inputs) for _, inputs in layers for each in schemes)
