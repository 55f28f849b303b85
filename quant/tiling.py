"""How the solver cuts its matrices into pieces, without torch: the memory plan counts them."""

from __future__ import annotations

# Columns of a block of the factorization (measured on the CPU; not yet on a GPU).
BLOCKS = {"cpu": 256, "cuda": 2048}
# Panels of columns are no narrower than this: products with fewer columns are slow.
PANEL = 128
STRIPS = 8
SMALLEST_STRIP = 128


def strips(inputs: int) -> list[tuple[int, int]]:
    """First and last row + 1 of the strips of a Hessian of `inputs` rows."""
    size = max(-(-inputs // STRIPS), SMALLEST_STRIP)
    return [(start, min(start + size, inputs)) for start in range(0, inputs, size)]
