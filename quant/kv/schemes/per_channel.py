"""Round to nearest, channel by channel: scales over groups of consecutive tokens (per-channel RTN).

A group is rounded when its last token has come; until then its tokens wait in full precision.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.kv.base import KvScheme, Shape
from quant.kv.stepped import Stepped
from quant.kv.windowed import Codes, solve_window

NAME = "per_channel"


@dataclass(frozen=True)
class Options(Codes):
    """As of Codes; groups are consecutive tokens."""

    group: int | None = 32


def solve(options: Options, shape: Shape, length: int, budget: float) -> Stepped:
    """The widest codes that fit, and the newest tokens in full precision for what is left."""
    return solve_window(NAME, options, shape, length, budget, by_channel=True)


SCHEME = KvScheme(NAME, "RTN per channel", solve, Options)
