"""Block sizes of the solver's matrix work; without torch, because the memory plan uses them."""

from __future__ import annotations

# Columns per block of the factorization (measured on the CPU, not yet on a GPU).
BLOCKS = {"cpu": 256, "cuda": 2048}
# Minimum columns per panel: products with fewer columns are slow.
PANEL = 128
STRIPS = 8
SMALLEST_STRIP = 128
# Most bytes of outputs that are remembered from one pass of a block to the next (calibrate.memo).
MEMO_BYTES = 1 << 29
# Positions whose logits are compared before a calibration; the inputs of the head are at all.
CHECKED_LOGITS = 64
# Weights of which all candidate grids are compared at a time; at least one row of a group.
SEARCHED_WEIGHTS = 1 << 13
MOST_CANDIDATES = 40
ENCODED_WEIGHTS = 1 << 18  # weights of a layer that get their codes at a time
AT_ONCE_OF_A_CANDIDATE = 5  # what encode, decode and the error hold for every weight


def numbers_of_search(columns: int) -> int:
    """Return how many numbers a search of grids of `columns` columns holds at once."""
    return max(SEARCHED_WEIGHTS, columns) * MOST_CANDIDATES * AT_ONCE_OF_A_CANDIDATE


def strips(inputs: int) -> list[tuple[int, int]]:
    """Return (first row, last row + 1) of the strips of a Hessian with `inputs` rows."""
    size = max(-(-inputs // STRIPS), SMALLEST_STRIP)
    return [(start, min(start + size, inputs)) for start in range(0, inputs, size)]
