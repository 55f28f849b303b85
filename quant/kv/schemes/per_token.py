"""Round to nearest, token by token: every key and value has its own scales (per-token RTN)."""

from __future__ import annotations

from dataclasses import dataclass

from quant.kv.base import KvScheme, Shape
from quant.kv.stepped import Stepped
from quant.kv.windowed import Codes, solve_window

NAME = "per_token"


@dataclass(frozen=True)
class Options(Codes):
    """As of Codes; groups are channels of a head."""


def solve(options: Options, shape: Shape, length: int, budget: float) -> Stepped:
    """The widest codes that fit, and the newest tokens in full precision for what is left."""
    return solve_window(NAME, options, shape, length, budget)


SCHEME = KvScheme(NAME, "RTN per token", solve, Options)
