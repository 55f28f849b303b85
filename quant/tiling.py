"""Block sizes of the solver's matrix work; without torch, because the memory plan uses them."""

from __future__ import annotations

# Columns per block of the factorization (measured on the CPU, not yet on a GPU).
BLOCKS = {"cpu": 256, "cuda": 2048}
# Minimum columns per panel: products with fewer columns are slow.
PANEL = 128
STRIPS = 8
SMALLEST_STRIP = 128
# Positions whose logits are compared before a calibration; the inputs of the head are at all.
CHECKED_LOGITS = 64


def strips(inputs: int) -> list[tuple[int, int]]:
    """Return (first row, last row + 1) of the strips of a Hessian with `inputs` rows."""
    size = max(-(-inputs // STRIPS), SMALLEST_STRIP)
    return [(start, min(start + size, inputs)) for start in range(0, inputs, size)]
