"""HQQ's two levels of 1 bit; Bitsweep packs their codes in 2 bits."""

from __future__ import annotations

from quant.levels import hqq

LEVELS = hqq.levels(
    "hqq_binary",
    "hqqbinary",
    "HQQ's binary levels are (code - zero) * scale with two codes",
    bits=(2,),
    codes=2,
)
