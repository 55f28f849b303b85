"""Compare rows on the same units: difference, interval, test and flips.

A row is the items of one figure, of each of its seeds. Units (windows, documents) are the sampling
unit of all that is computed here, because tokens of a window are not independent. Seeds share the
units, so they are averaged within each unit and make no more of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from harness.paired.bootstrap import intervals, resampled_sums, rounded
from harness.paired.exact import ALPHA, holm, mcnemar, paired_t
from harness.records.items import values_of, weights_of
from harness.records.record import Items

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MCNEMAR, PAIRED_T = "exact McNemar", "paired t"
AT_ONCE = 64  # pairs whose intervals are sought together: 2 MB of resampled differences


@dataclass(frozen=True)
class Comparison:
    """What a row differs from a reference by.

    reference, value  the two figures; difference = value - reference.
    low, high   95 % paired bootstrap interval of the difference.
    lost        units right in the reference and wrong in the row, gained: the other way (means over
                seeds); None for figures that are no shares of right answers.
    test        of the hypothesis that there is no difference; None for a single unit.
    p           its two-sided value; adjusted: by Holm's method, over all comparisons made together.
    spread      standard deviation over units of the paired differences, a unit of weight: of losses
                in nats a token for a perplexity.
    """

    reference: float
    value: float
    difference: float
    low: float
    high: float
    count: int
    unit: str
    lost: float | None
    gained: float | None
    test: str | None
    p: float | None
    spread: float | None
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the adjusted value is below ALPHA."""
        return is_significant(self.adjusted)


def is_significant(adjusted: float | None) -> bool:
    """Whether an adjusted value, None without a test, is below ALPHA."""
    return adjusted is not None and adjusted < ALPHA


def same_units(*sides: Sequence[Items]) -> bool:
    """Whether all items are of the same units, in the same order."""
    return len({(each.ids, each.count, each.unit) for side in sides for each in side}) == 1


def compare(reference: Sequence[Items], others: Sequence[Sequence[Items]]) -> list[Comparison]:
    """Compare every other row with the reference; `adjusted` is not set (see `adjusted`).

    Each row has the items of its seeds. Raises ValueError if they are not of the same units.
    """
    pairs = [(0, index) for index in range(1, len(others) + 1)]
    return list(compare_pairs([reference, *others], pairs).values())


def compare_pairs(
    rows: Sequence[Sequence[Items]], pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], Comparison]:
    """Compare pairs of rows, given as (reference, other); what `compare` finds for each alone.

    All rows are resampled once. Raises ValueError if they are not of the same units.
    """
    pairs = list(pairs)
    first, weights, sides = _sides(rows)
    found: dict[tuple[int, int], Comparison] = {}
    for start in range(0, len(pairs), AT_ONCE):
        some = pairs[start : start + AT_ONCE]
        both = [(sides[one], sides[other]) for one, other in some]
        found |= dict(zip(some, _comparisons(first, weights, both), strict=True))
    return found


@dataclass(frozen=True)
class _Side:
    """What one row brings to each of its comparisons.

    figure  the row's, averaged over seeds; drawn: resampled, float64 [RESAMPLES].
    units   values averaged over seeds, float64 [units].
    shares  every value is a right or a wrong answer, and the figure their share.
    seeds   how many the row has.
    """

    figure: float
    drawn: Array
    units: Array
    shares: bool
    seeds: int


def _sides(rows: Sequence[Sequence[Items]]) -> tuple[Items, Array, list[_Side]]:
    """The first items, weights [units], and the side of each row."""
    if not same_units(*rows):
        raise ValueError("rows on different windows or documents cannot be compared")
    first = rows[0][0]
    weights = weights_of(first)
    whole = np.array([[weights.sum()]])
    values = [np.stack([values_of(each) for each in side], axis=1) for side in rows]
    sums = resampled_sums(np.column_stack([weights, *values]), first.ids)
    sides, start = [], 1
    for each in values:
        stop = start + each.shape[1]
        figure = _figure(each.sum(axis=0)[None], whole, first.exponential)
        drawn = _figure(sums[:, start:stop], sums[:, :1], first.exponential)
        shares = _are_shares(first, each)
        sides.append(_Side(float(figure[0]), drawn, each.mean(axis=1), shares, each.shape[1]))
        start = stop
    return first, weights, sides


def paired_changes(reference: Items, other: Items) -> tuple[float | None, float | None]:
    """The share of answers that change, and the spread of paired differences, without resampling.

    The share is None for figures that are no shares of right answers; the spread (Comparison) for
    a single unit.
    """
    old, new, weights = values_of(reference), values_of(other), weights_of(reference)
    share = float(np.mean(old != new)) if _are_shares(reference, old, new) else None
    return share, _spreads((new - old)[None], weights)[1][0]


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with `adjusted` by Holm's method over all that have a test."""
    values = adjusted_values([each.p for each in comparisons])
    return [
        each if value is None else replace(each, adjusted=value)
        for each, value in zip(comparisons, values, strict=True)
    ]


def adjusted_values(values: Sequence[float | None]) -> list[float | None]:
    """p-values by Holm's method over all that are not None, which stay None."""
    corrected = iter(holm([p for p in values if p is not None]))
    return [None if p is None else next(corrected) for p in values]


def _figure(sums: Array, weights: Array, exponential: bool) -> Array:
    """The figure of sums [n, seeds] and weights [n, 1], averaged over seeds: float64 [n]."""
    ratios = sums / weights
    figures = np.exp(ratios) if exponential else ratios
    mean: Array = figures[:, 0] if figures.shape[1] == 1 else figures.mean(axis=1)
    return mean


def _comparisons(
    first: Items, weights: Array, pairs: Sequence[tuple[_Side, _Side]]
) -> list[Comparison]:
    """The comparisons of pairs (reference, other)."""
    ends = intervals(np.stack([other.drawn - one.drawn for one, other in pairs]))
    old = np.stack([one.units for one, _ in pairs])
    new = np.stack([other.units for _, other in pairs])
    counts = zip(
        (old * (1 - new)).sum(axis=1).tolist(), ((1 - old) * new).sum(axis=1).tolist(), strict=True
    )
    means, spreads = _spreads(new - old, weights)
    return [
        _comparison(first, one, other, interval, both, mean, spread)
        for (one, other), interval, both, mean, spread in zip(
            pairs, ends, counts, means, spreads, strict=True
        )
    ]


def _comparison(
    first: Items,
    reference: _Side,
    other: _Side,
    ends: tuple[float, float],
    counts: tuple[float, float],
    mean: float,
    spread: float | None,
) -> Comparison:
    """ends: the interval of the difference; counts: units lost and gained, of shares."""
    before, after = reference.figure, other.figure
    shares = reference.shares and other.shares
    lost, gained = counts if shares else (None, None)
    test: str | None = None
    p: float | None = None
    if shares and reference.seeds == other.seeds == 1:
        test, p = MCNEMAR, mcnemar(*map(round, counts))
    elif spread is not None:
        error = spread / math.sqrt(first.count)
        test, p = PAIRED_T, rounded(paired_t(mean, error, first.count - 1))
    return Comparison(
        reference=rounded(before),
        value=rounded(after),
        difference=rounded(after - before),
        low=ends[0],
        high=ends[1],
        count=first.count,
        unit=first.unit,
        lost=lost,
        gained=gained,
        test=test,
        p=p,
        spread=spread,
    )


def _are_shares(first: Items, *sides: Array) -> bool:
    """Whether the figure is a share of right answers: every value is 0 or 1."""
    if first.exponential or first.weights is not None:
        return False
    return all(bool(((side == 0) | (side == 1)).all()) for side in sides)


def _spreads(differences: Array, weights: Array) -> tuple[list[float], Sequence[float | None]]:
    """Mean differences a unit of weight, and their standard deviations over units, of [n, units].

    The mean is a ratio of sums, r = sum(d) / sum(w). Its error is that of the residuals d - r w
    (delta method, as in harness.suites.scoring), here divided by the mean weight. None for a single
    unit.
    """
    count = differences.shape[1]
    ratios = differences.sum(axis=1) / weights.sum()
    if count < 2:
        return ratios.tolist(), [None] * len(ratios)
    residuals = (differences - ratios[:, None] * weights) / weights.mean()
    return ratios.tolist(), np.sqrt((residuals**2).sum(axis=1) / (count - 1)).tolist()
