"""NF4 of QLoRA (arXiv 2305.14314): quantiles of the normal distribution, by bitsandbytes.

A group's scale is its largest magnitude; values are table entry * scale. bitsandbytes stores scales
in float32, or twice quantized; here they have the scheme's scale_dtype.
"""

from __future__ import annotations

from quant.levels.numbers import table

# As bitsandbytes writes them; float32 holds them exactly.
TABLE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

LEVELS = table.levels(
    "nf4",
    "nf4",
    "NF4 levels are 16 quantiles of a normal distribution, times a group's maximum",
    TABLE,
)
