"""FP4 of bitsandbytes: sign, two bits of exponent and one of mantissa, by a table of its own.

It is no other FP4: the magnitudes are 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3 and 1, and not in the order
of the bits. E2M1 of NVFP4 and MXFP4 has 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
"""

from __future__ import annotations

from quant.levels.numbers import table

_MAGNITUDES = (0.0, 0.0625 / 12, 2 / 12, 3 / 12, 4 / 12, 6 / 12, 8 / 12, 1.0)
TABLE = (*(-each for each in reversed(_MAGNITUDES)), *_MAGNITUDES)
# Rank of every code in the files; code 8 is the negative zero.
RANKS = (8, 9, 14, 15, 12, 13, 10, 11, 7, 6, 1, 0, 3, 2, 5, 4)

LEVELS = table.levels(
    "bnb_fp4",
    "bnbfp4",
    "bitsandbytes' FP4 levels are 8 magnitudes with a sign, times a group's maximum",
    TABLE,
)
