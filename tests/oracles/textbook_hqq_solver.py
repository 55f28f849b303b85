"""HQQ's optimization of zero-points, weight by weight in python floats; nothing of quant/.

Written from mobiusml.github.io/hqq_blog: q = round(w / s + z), e = shrink(w - s (q - z)), and z the
mean of q - (w - e) / s, with the generalized soft threshold of |x|^p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tests.oracles.textbook_hqq import rounded


@dataclass
class Group:
    """What a group is stored as, and the codes of its weights."""

    scale: float
    zero: float
    codes: list[int]
    values: list[float]


def shrink(x: float, beta: float, p: float) -> float:
    """sign(x) max(|x| - |x|^(p-1) / beta, 0)"""
    return 0.0 if x == 0 else math.copysign(max(abs(x) - abs(x) ** (p - 1) / beta, 0.0), x)


def solve(
    weights: list[float],
    bits: int,
    dtype: str,
    *,
    p: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 20,
    round_first: bool = False,
) -> Group:
    """One group; its range contains 0. Scale and zero-point are rounded to dtype."""
    top = 2**bits - 1
    low, high = min(0.0, *weights), max(0.0, *weights)
    scale = float(rounded(1.0 if low == high else (high - low) / top, dtype))
    zero = float(rounded(-low / scale, dtype))
    if round_first:
        zero = float(round(zero))
    for step in range(iterations):
        total = 0.0
        for w in weights:
            code = min(max(round(w / scale + zero), 0), top)
            apart = shrink(w - scale * (code - zero), beta * kappa**step, p)
            total += code - (w - apart) / scale
        zero = total / len(weights)
    zero = float(rounded(zero, dtype))
    levels = [float(rounded(rounded(c - zero, dtype) * scale, dtype)) for c in range(top + 1)]
    codes = [min(range(top + 1), key=lambda c, w=w: abs(levels[c] - w)) for w in weights]
    return Group(scale, zero, codes, [levels[c] for c in codes])
