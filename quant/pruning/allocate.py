"""Allocate: how many units every block loses, for the least sum of their scores within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import QuantizationError


@dataclass(frozen=True)
class Ladder:
    """The units of one kind in a block, in the order in which they go.

    steps   what goes in each step: numbers of columns or of groups of heads.
    scores  [steps + 1] what the model loses when the first 0, 1, ... steps are gone, rising.
    """

    steps: Sequence[Sequence[int]]
    scores: Sequence[float]

    def removed(self, count: int) -> list[int]:
        """Return what the first `count` steps take, in rising order."""
        return sorted(number for step in self.steps[:count] for number in step)


def allocate(
    kinds: Sequence[Sequence[Ladder]],
    saved: Sequence[float],
    excess: float,
    fits: Callable[[Sequence[Sequence[int]]], bool],
) -> list[list[int]]:
    """Return how many steps every ladder goes, for each of one or two kinds of units in each block.

    kinds   ladders of the blocks, for each kind.
    saved   bits that a step of each kind saves at most.
    excess  bits that have to go.
    fits    fits(counts), with counts[kind][block]: whether the model is within its budget.

    For every number of steps of each kind the best distribution over blocks is found by dynamic
    programming, so the sum of scores is the least of all that fit, whether or not the scores of a
    ladder rise faster and faster.
    """
    best = [_best(ladders) for ladders in kinds]
    *first, last = best
    totals, gone = last.totals, saved[-1] * torch.arange(len(last.totals))
    for each in first:
        totals = each.totals[:, None] + totals
        gone = saved[0] * torch.arange(len(each.totals))[:, None] + gone
    totals = torch.where(gone >= excess, totals, torch.inf).reshape(-1, len(last.totals))
    for place in totals.flatten().argsort(stable=True).tolist():
        steps = divmod(place, len(last.totals))[-len(best) :]
        if not torch.isfinite(totals[divmod(place, len(last.totals))]):
            break
        counts = [each.counts(count) for each, count in zip(best, steps, strict=True)]
        if fits(counts):
            return counts
    raise QuantizationError("no choice of parts meets the budget; use a larger one.")


@dataclass(frozen=True)
class _Best:
    """The least sums of scores, float64 [steps + 1], and how each block has its part in them."""

    totals: Tensor
    parts: Sequence[Tensor]  # int64 [steps + 1] a block: its steps in the best of all up to it

    def counts(self, steps: int) -> list[int]:
        found = []
        for part in reversed(self.parts):
            found.append(int(part[steps]))
            steps -= found[-1]
        return found[::-1]


def _best(ladders: Sequence[Ladder]) -> _Best:
    totals, parts = torch.zeros(1, dtype=torch.float64), []
    for ladder in ladders:
        size = len(totals) + len(ladder.steps)
        less = torch.full((size,), torch.inf, dtype=torch.float64)
        part = torch.zeros(size, dtype=torch.int64)
        for count, score in enumerate(ladder.scores):
            window = slice(count, count + len(totals))
            better = totals + score < less[window]
            less[window] = torch.where(better, totals + score, less[window])
            part[window] = torch.where(better, count, part[window])
        totals = less
        parts.append(part)
    return _Best(totals, parts)
