"""Staircase adaptive quantization: bits fall in steps with the age of a token, 16, 8, 4, 2.

Our reading of an abstract (no code is public): per-token rounding, and a token that moves down is
rounded from what was stored. Where the steps lie is ours too: each reaches `ratio` times as far
back as the one before, the first as far as the budget allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from quant.kv.base import KvCacheError, KvScheme, Shape, beyond
from quant.kv.rounding import BITS, Rounding
from quant.kv.stepped import Step, Stepped, largest
from quant.kv.windowed import ADVICE, channels

NAME = "staircase"
PARTS = 64  # the first threshold is solved in parts of a token, so that the last one is fine enough


@dataclass(frozen=True)
class Options:
    """The stairs.

    bits        of codes behind the full precision of the newest tokens, falling.
    thresholds  age in tokens at which each of them begins, rising; empty: solved for the budget.
    ratio       of consecutive thresholds, where they are solved.
    group       channels that share a scale and a zero-point; None: those of a head.
    """

    bits: tuple[int, ...] = (8, 4, 2)
    thresholds: tuple[int, ...] = ()
    ratio: float = 4.0
    group: int | None = None

    def __post_init__(self) -> None:
        if not self.bits or any(each not in BITS for each in self.bits):
            raise ValueError(f"bits={list(self.bits)} are no widths of codes; use [8,4,2].")
        if any(later >= earlier for earlier, later in pairwise(self.bits)):
            raise ValueError(f"bits={list(self.bits)} do not fall; use [8,4,2].")
        if self.thresholds and len(self.thresholds) != len(self.bits):
            raise ValueError(
                f"thresholds={list(self.thresholds)} are not as many as bits={list(self.bits)}; "
                "give the age at which each of these begins, or [] to solve them."
            )
        rising = all(earlier <= later for earlier, later in pairwise((0, *self.thresholds)))
        if not rising:
            raise ValueError(f"thresholds={list(self.thresholds)} do not rise; use [128,512,2048].")
        if self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} is less than 1; use 4.")


def solve(options: Options, shape: Shape, length: int, budget: float) -> Stepped:
    """The given thresholds if they keep to the budget, or the largest that do."""

    def cache(thresholds: tuple[int, ...]) -> Stepped:
        def steps(width: int) -> tuple[Step, ...]:
            group = channels(NAME, options.group, width)
            ages = zip(options.bits, thresholds, strict=True)
            return tuple(Step(Rounding(bits, group), age) for bits, age in ages)

        stairs = "/".join(map(str, (16, *options.bits)))
        words = [f"{stairs} bits", f"from ages {'/'.join(map(str, thresholds))}"]
        return Stepped(shape, steps(shape.keys), steps(shape.values), words)

    def solved(parts: int) -> Stepped:
        ages = (parts / PARTS * options.ratio**step for step in range(len(options.bits)))
        return cache(tuple(min(int(age), length) for age in ages))

    if options.thresholds:
        found = cache(options.thresholds)
        if (least := found.bits(length)) <= budget:
            return found
        why = f"thresholds {list(options.thresholds)}"
        advice = f"use suite.kv_cache.options.{NAME}.thresholds=[], which solves them"
        raise KvCacheError(beyond(NAME, budget, length, least, why, advice))
    parts = largest(solved, length, budget, PARTS * length)
    if parts is None:
        why = f"{options.bits[-1]}-bit codes with scales and zeros"
        raise KvCacheError(beyond(NAME, budget, length, solved(0).bits(length), why, ADVICE))
    return solved(parts)


SCHEME = KvScheme(
    NAME,
    "staircase",
    solve,
    Options,
    reading="staircase: our reading of an abstract (docs/methods/kv_cache.md)",
)
