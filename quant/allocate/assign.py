"""The best choice of one candidate for every layer under a budget: a multiple-choice knapsack.

Exact, by dynamic programming over the nondominated pairs (bits, cost) of the layers so far
(Kellerer, Pferschy and Pisinger, Knapsack Problems, chapter 11): a pair is dropped if another has
no more bits and no higher cost, or if the smallest candidates of the layers that follow exceed
the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def assign(
    bits: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """Return the candidate of every layer, of least total cost with at most `budget` bits.

    bits and costs [layers][candidates] are those of each candidate. Of choices with equal costs the
    one with fewer bits is taken, and of equal bits, too, the one whose last layer that differs has
    the earlier candidate, so that the result depends on the arguments alone. Costs are added in the
    order of the layers, in float64. Raises ValueError if no choice has so few bits.
    """
    rest = sum(map(min, bits))
    if rest > budget:
        raise ValueError(f"the smallest candidates have {rest} bits, and the budget is {budget}.")
    sizes = torch.zeros(1, dtype=torch.int64)
    totals = torch.zeros(1, dtype=torch.float64)
    steps: list[tuple[Tensor, Tensor]] = []  # candidate, and the pair before, of each kept pair
    for own_bits, own_costs in zip(bits, costs, strict=True):
        rest -= min(own_bits)
        count = len(sizes)
        grown = torch.cat([sizes + each for each in own_bits])
        cost = torch.cat([totals + each for each in own_costs])
        candidate = torch.arange(len(own_bits)).repeat_interleave(count)
        before = torch.arange(count).repeat(len(own_bits))
        fits = (grown + rest <= budget).nonzero()[:, 0]
        # Sorted by bits, then cost, then candidate: both sorts are stable.
        order = fits[cost[fits].argsort(stable=True)]
        order = order[grown[order].argsort(stable=True)]
        least = cost[order].cummin(0).values
        better = torch.cat([torch.ones(1, dtype=torch.bool), cost[order][1:] < least[:-1]])
        kept = order[better]
        sizes, totals = grown[kept], cost[kept]
        steps.append((candidate[kept].to(torch.int16), before[kept].to(torch.int32)))
    at, chosen = len(sizes) - 1, []  # the last pair costs least
    for candidates, befores in reversed(steps):
        chosen.append(int(candidates[at]))
        at = int(befores[at])
    return chosen[::-1]
