"""Caches of one kind of codes, with a window of the newest tokens in full precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from quant.kv.base import KvCacheError, Shape, beyond
from quant.kv.rounding import BITS, Rounding
from quant.kv.stepped import Step, Stepped, largest

ALONG_TOKENS = (32, 64, 128)  # consecutive tokens of a channel that share a scale and a zero-point


@dataclass(frozen=True)
class Codes:
    """How numbers are rounded.

    bits   of a code: 8, 4, 3 or 2; None: the widest that fit into the budget.
    group  numbers that share a scale and a zero-point; None: the channels of a head.
    """

    bits: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"bits={self.bits} is no width of a code; use 8, 4, 3 or 2.")
        if self.group is not None and self.group < 2:
            raise ValueError(f"group={self.group} is too small; use 2 or more.")

    @property
    def widths(self) -> Sequence[int]:
        """Bits to try, the best first."""
        return BITS if self.bits is None else (self.bits,)

    @property
    def along_tokens(self) -> Sequence[int]:
        """Groups of tokens to try, the best first."""
        return ALONG_TOKENS if self.group is None else (self.group,)


def channels(name: str, group: int | None, width: int) -> int:
    """Numbers of a group along the `width` channels of a head: at most all of them.

    Raises KvCacheError for a group that does not divide them.
    """
    found = width if group is None else min(group, width)
    if width % found:
        raise KvCacheError(
            f"kv scheme {name}: groups of {group} do not divide the {width} channels of a head: "
            f"use suite.kv_cache.options.{name}.group=null for one group a head."
        )
    return found


def solve_window(
    name: str,
    options: Codes,
    shape: Shape,
    length: int,
    budget: float,
    by_channel: bool = False,
    rotated: bool = False,
) -> Stepped:
    """The widest codes that keep to the budget, with the largest window that then does.

    Keys and values are treated alike. Raises KvCacheError if no codes do.
    """

    def cache(bits: int, along: int | None, window: int) -> Stepped:
        steps = []
        for width in (shape.keys, shape.values):
            group = along or channels(name, options.group, width)
            rounding = Rounding(bits, group, by_channel, rotated)
            steps.append((Step(rounding, window, along or 1),))
        words = [f"{bits} bits", f"group {steps[0][0].rounding.group}", said_window(window)]
        return Stepped(shape, steps[0], steps[1], words)

    settings = list(product(options.widths, options.along_tokens if by_channel else (None,)))
    for bits, along in settings:
        window = largest(partial(cache, bits, along), length, budget, length)
        if window is not None:
            return cache(bits, along, window)
    raise KvCacheError(
        cheapest(name, [cache(bits, along, 0) for bits, along in settings], length, budget)
    )


def cheapest(name: str, tried: Sequence[Stepped], length: int, budget: float) -> str:
    """The sentence on a budget that no cache of those tried keeps to."""
    least = min(tried, key=lambda each: each.bits(length))
    return beyond(name, budget, length, least.bits(length), ", ".join(least.words), ADVICE)


ADVICE = "raise suite.kv_cache.bits or leave it out of suite.kv_cache.schemes"


def said_window(tokens: int) -> str:
    """The window in the words of a table."""
    return f"newest {tokens} in 16 bits"
