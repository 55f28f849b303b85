"""Q4_K of llama.cpp: 4 bits in groups of 32, whose scales and minima have 6 bits each."""

from __future__ import annotations

from quant.levels.numbers import super_blocks

LEVELS = super_blocks.affine("q4_k", "q4k", bits=4, group=32, width=6)
