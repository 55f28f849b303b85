"""Caches of one kind of codes, with a window of the newest tokens in full precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quant.kv.base import KvCacheError, Shape, beyond
from quant.kv.rounding import BITS, Rounding
from quant.kv.stepped import Step, Stepped, largest


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

    def cache(bits: int, window: int) -> Stepped:
        steps = []
        for width in (shape.keys, shape.values):
            group = options.group or width if by_channel else channels(name, options.group, width)
            rounding = Rounding(bits, group, by_channel, rotated)
            steps.append((Step(rounding, window, group if by_channel else 1),))
        words = [f"{bits} bits", f"group {steps[0][0].rounding.group}", said_window(window)]
        return Stepped(shape, steps[0], steps[1], words)

    for bits in options.widths:
        window = largest(lambda window, bits=bits: cache(bits, window), length, budget, length)
        if window is not None:
            return cache(bits, window)
    last = cache(options.widths[-1], 0)
    why = f"{last.words[0].replace(' bits', '-bit')} codes, scales and zeros in {last.words[1]}s"
    raise KvCacheError(beyond(name, budget, length, last.bits(length), why, ADVICE))


ADVICE = "raise suite.kv_cache.bits or leave it out of suite.kv_cache.schemes"


def said_window(tokens: int) -> str:
    """The window in the words of a table."""
    return f"newest {tokens} in 16 bits"
