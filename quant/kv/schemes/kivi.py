"""KIVI (arXiv 2402.02750): keys by channel, values by token, the newest tokens in full precision.

Keys wait until `residual` of them are there and are then rounded together, in groups of consecutive
tokens; a value is rounded when it is older than the residual.
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.kv.base import KvCacheError, KvScheme, Shape, beyond
from quant.kv.rounding import Rounding
from quant.kv.stepped import Step, Stepped, largest
from quant.kv.windowed import ADVICE, Codes, channels

NAME = "kivi"


@dataclass(frozen=True)
class Options(Codes):
    """As of Codes; groups are tokens of a key's channel, and at most so many channels of a value.

    residual  keys that are rounded together, a multiple of the group; None: what the budget allows.
    """

    group: int | None = 32
    residual: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group is None:
            raise ValueError("group=null leaves keys without groups of tokens; use 32.")
        if self.residual is not None and (self.residual < 1 or self.residual % self.group):
            raise ValueError(
                f"residual={self.residual} is no multiple of group={self.group}; use one, such as "
                f"{4 * self.group}."
            )


def solve(options: Options, shape: Shape, length: int, budget: float) -> Stepped:
    """The widest codes that fit, and the longest residual; values get what keys leave of it."""
    group = options.group
    assert group is not None  # Options
    of_value = channels(NAME, group, shape.values)

    def cache(bits: int, residual: int, more: int = 0) -> Stepped:
        keys = Step(Rounding(bits, group, by_channel=True), 0, residual)
        values = Step(Rounding(bits, of_value), residual + more)
        said = f"residual {residual}" if not more else f"residual {residual}, of values +{more}"
        words = [f"{bits} bits", f"group {group}", said]
        return Stepped(shape, (keys,), (values,), words)

    for bits in options.widths:
        if options.residual is not None:
            found = cache(bits, options.residual)
            if found.bits(length) <= budget:
                return found
            continue
        blocks = largest(
            lambda more, bits=bits: cache(bits, (more + 1) * group),
            length,
            budget,
            length // group,
        )
        if blocks is not None:
            residual = (blocks + 1) * group
            more = largest(
                lambda more, bits=bits, residual=residual: cache(bits, residual, more),
                length,
                budget,
                2 * group,  # the next residual costs keys half a group and values a whole one
            )
            return cache(bits, residual, more or 0)
    last = cache(options.widths[-1], options.residual or group)
    why = f"{options.widths[-1]}-bit codes in groups of {group} and a {last.words[2]} in 16 bits"
    raise KvCacheError(beyond(NAME, budget, length, last.bits(length), why, ADVICE))


SCHEME = KvScheme(NAME, "KIVI", solve, Options, source="arXiv 2402.02750")
