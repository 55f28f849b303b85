"""KIVI (arXiv 2402.02750): keys by channel, values by token, the newest tokens in full precision.

Keys wait until `residual` of them are there and are then rounded together, in groups of consecutive
tokens; a value is rounded when it is older than the residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from math import gcd

from quant.kv.base import KvCacheError, KvScheme, Shape
from quant.kv.rounding import Rounding
from quant.kv.stepped import Step, Stepped, largest
from quant.kv.windowed import Codes, cheapest

NAME = "kivi"


@dataclass(frozen=True)
class Options(Codes):
    """As of Codes; groups are tokens of a key's channel; None: the fewest of 32, 64, 128 that fit.

    Groups of a value's channels are as large, or the largest part of that which divides a head.

    residual  keys that are rounded together, a multiple of the group; None: what the budget allows.
    """

    residual: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual is None:
            return
        if self.group is None:
            raise ValueError(
                f"residual={self.residual} needs a group that divides it; use group=32."
            )
        if self.residual < 1 or self.residual % self.group:
            raise ValueError(
                f"residual={self.residual} is no multiple of group={self.group}; use one, such as "
                f"{4 * self.group}."
            )


def solve(options: Options, shape: Shape, length: int, budget: float) -> Stepped:
    """The widest codes that fit, in the smallest groups, with the longest residual; values get what
    keys leave of it.
    """

    def cache(bits: int, group: int, residual: int, more: int = 0) -> Stepped:
        keys = Step(Rounding(bits, group, by_channel=True), 0, residual)
        values = Step(Rounding(bits, gcd(group, shape.values)), residual + more)
        said = f"residual {residual}" if not more else f"residual {residual} (values +{more})"
        words = [f"{bits} bits", f"group {group}", said]
        return Stepped(shape, (keys,), (values,), words)

    def blocked(bits: int, group: int, more: int) -> Stepped:
        return cache(bits, group, options.residual or (more + 1) * group)

    settings = list(product(options.widths, options.along_tokens))
    for bits, group in settings:
        most = 0 if options.residual else length // group
        blocks = largest(partial(blocked, bits, group), length, budget, most)
        if blocks is None:
            continue
        if options.residual:
            return cache(bits, group, options.residual)
        residual = (blocks + 1) * group
        # The next residual would cost keys half a group more and values a whole one.
        more = largest(partial(cache, bits, group, residual), length, budget, 2 * group)
        return cache(bits, group, residual, more or 0)
    tried = [blocked(bits, group, 0) for bits, group in settings]
    raise KvCacheError(cheapest(NAME, tried, length, budget))


SCHEME = KvScheme(NAME, "KIVI", solve, Options, source="arXiv 2402.02750")
