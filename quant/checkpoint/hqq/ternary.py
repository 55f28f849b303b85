"""HQQ's three levels of "1.58 bits", which it packs in 2 bits."""

from __future__ import annotations

from quant.levels import hqq

LEVELS = hqq.levels(
    "hqq_ternary",
    "hqqternary",
    "HQQ's ternary levels are (code - zero) * scale with three codes",
    bits=(2,),
    codes=3,
)
