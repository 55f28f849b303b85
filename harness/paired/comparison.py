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

from harness.paired.bootstrap import interval, resampled_sums, rounded
from harness.paired.exact import ALPHA, holm, mcnemar, paired_t
from harness.records.items import values_of, weights_of
from harness.records.record import Items

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MCNEMAR, PAIRED_T = "exact McNemar", "paired t"


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
        return self.adjusted is not None and self.adjusted < ALPHA


def same_units(*sides: Sequence[Items]) -> bool:
    """Whether all items are of the same units, in the same order."""
    return len({(each.ids, each.count, each.unit) for side in sides for each in side}) == 1


def compare(reference: Sequence[Items], others: Sequence[Sequence[Items]]) -> list[Comparison]:
    """Compare every other row with the reference; `adjusted` is not set (see `adjusted`).

    Each row has the items of its seeds. Raises ValueError if they are not of the same units.
    """
    first, weights, sides, drawn = _drawn([reference, *others])
    return [
        _comparison(first, weights, sides[0], other, drawn[0], values)
        for other, values in zip(sides[1:], drawn[1:], strict=True)
    ]


def compare_pairs(
    rows: Sequence[Sequence[Items]], pairs: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], Comparison]:
    """Compare pairs of rows, given as (reference, other); what `compare` finds for each alone.

    All rows are resampled once. Raises ValueError if they are not of the same units.
    """
    first, weights, sides, drawn = _drawn(rows)
    return {
        (one, other): _comparison(
            first, weights, sides[one], sides[other], drawn[one], drawn[other]
        )
        for one, other in pairs
    }


def _drawn(rows: Sequence[Sequence[Items]]) -> tuple[Items, Array, list[Array], list[Array]]:
    """The first items, weights [units], and of each row values [units, seeds] and resamples."""
    if not same_units(*rows):
        raise ValueError("rows on different windows or documents cannot be compared")
    first = rows[0][0]
    weights = weights_of(first)
    sides = [np.stack([values_of(each) for each in side], axis=1) for side in rows]
    sums = resampled_sums(np.column_stack([weights, *sides]), first.ids)
    drawn, start = [], 1
    for side in sides:
        stop = start + side.shape[1]
        drawn.append(_figure(sums[:, start:stop], sums[:, :1], first.exponential))
        start = stop
    return first, weights, sides, drawn


def paired_changes(reference: Items, other: Items) -> tuple[float | None, float | None]:
    """The share of answers that change, and the spread of paired differences, without resampling.

    The share is None for figures that are no shares of right answers; the spread (Comparison) for
    a single unit.
    """
    old, new, weights = values_of(reference), values_of(other), weights_of(reference)
    share = float(np.mean(old != new)) if _are_shares(reference, old, new) else None
    return share, _spread(new - old, weights)[1]


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with `adjusted` by Holm's method over all that have a test."""
    tested = [index for index, each in enumerate(comparisons) if each.p is not None]
    values = holm([p for each in comparisons if (p := each.p) is not None])
    found = list(comparisons)
    for index, value in zip(tested, values, strict=True):
        found[index] = replace(found[index], adjusted=value)
    return found


def _figure(sums: Array, weights: Array, exponential: bool) -> Array:
    """The figure of sums [n, seeds] and weights [n, 1], averaged over seeds: float64 [n]."""
    ratios = sums / weights
    mean: Array = (np.exp(ratios) if exponential else ratios).mean(axis=1)
    return mean


def _comparison(
    first: Items, weights: Array, reference: Array, other: Array, drawn: Array, values: Array
) -> Comparison:
    """reference and other are values [units, seeds]; drawn and values their resampled figures."""
    whole = np.array([[weights.sum()]])
    before, after = (
        float(_figure(side.sum(axis=0)[None], whole, first.exponential)[0])
        for side in (reference, other)
    )
    low, high = interval(values - drawn)
    old, new = reference.mean(axis=1), other.mean(axis=1)
    lost = gained = None
    shares = _are_shares(first, reference, other)
    if shares:
        lost, gained = float((old * (1 - new)).sum()), float(((1 - old) * new).sum())
    mean, spread = _spread(new - old, weights)
    test: str | None = None
    p: float | None = None
    if shares and reference.shape[1] == other.shape[1] == 1:
        assert lost is not None
        assert gained is not None
        test, p = MCNEMAR, mcnemar(round(lost), round(gained))
    elif spread is not None:
        error = spread / math.sqrt(first.count)
        test, p = PAIRED_T, rounded(paired_t(mean, error, first.count - 1))
    return Comparison(
        reference=rounded(before),
        value=rounded(after),
        difference=rounded(after - before),
        low=low,
        high=high,
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
    return all(bool(np.isin(side, (0.0, 1.0)).all()) for side in sides)


def _spread(differences: Array, weights: Array) -> tuple[float, float | None]:
    """The mean difference a unit of weight, and its standard deviation over units.

    The mean is a ratio of sums, r = sum(d) / sum(w). Its error is that of the residuals d - r w
    (delta method, as in harness.suites.scoring), here divided by the mean weight. None for a single
    unit.
    """
    count = len(differences)
    ratio = float(differences.sum() / weights.sum())
    if count < 2:
        return ratio, None
    residuals = (differences - ratio * weights) / weights.mean()
    return ratio, math.sqrt(float((residuals**2).sum()) / (count - 1))
