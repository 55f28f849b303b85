"""NF4 of QLoRA (arXiv 2305.14314): quantiles of the normal distribution, by bitsandbytes."""

from __future__ import annotations

from quant.checkpoint.bnb import table

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
# Rank of every code in the files.
RANKS = tuple(range(16))

LEVELS = table.levels(
    "nf4",
    "nf4",
    "NF4 levels are 16 quantiles of a normal distribution, times a group's maximum",
    TABLE,
)
