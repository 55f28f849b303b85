"""Q2_K of llama.cpp: 2 bits in groups of 16, whose scales and minima have 4 bits each."""

from __future__ import annotations

from quant.levels.numbers import super_blocks

LEVELS = super_blocks.affine("q2_k", "q2k", bits=2, group=16, width=4)
