"""Tests of paired differences and their correction, by exact sums; no heavy library.

McNemar (1947) in its exact form, Student's paired t, Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

ALPHA = 0.05  # two-sided, of every test and interval here
TERMS = 200  # of the continued fraction, beside those that many degrees of freedom need


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of the exact test of two counts of discordant pairs.

    Without a difference each discordant pair falls either way with probability 1/2, so the smaller
    count is binomial: p = min(1, 2 P(X <= min(lost, gained))), X ~ B(lost + gained, 1/2).
    """
    pairs, smaller = lost + gained, min(lost, gained)
    if smaller < 0:
        raise ValueError(f"counts of pairs are not negative: {lost}, {gained}")
    if 2 * smaller >= pairs:
        return 1.0
    term = total = 1
    for chosen in range(smaller):
        term = term * (pairs - chosen) // (chosen + 1)
        total += term
    return min(1.0, total / (1 << (pairs - 1)))  # of whole numbers, so it is rounded once


def paired_t(mean: float, error: float, freedom: int) -> float:
    """Two-sided p-value of a mean difference with its standard error; freedom >= 1."""
    if mean == 0:
        return 1.0
    return 0.0 if error == 0 else student(mean / error, freedom)


def student(t: float, freedom: float) -> float:
    """P(|T| >= |t|) of Student's t: I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t²)."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


@lru_cache(maxsize=256)
def student_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability, for a probability from 0.5 to 1."""
    low, high = 0.0, 1.0
    while 1 - student(high, freedom) / 2 < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if 1 - student(middle, freedom) / 2 < probability:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22).

    The fraction is summed from its end, with more terms the larger a and b are. Small values have
    full relative precision, which 1 - I would not have.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the complement converges
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(front + a * math.log(x) + b * math.log1p(-x)) / a
    fraction = 1.0
    for m in range(TERMS + 2 * math.isqrt(int(max(a, b))), -1, -1):
        even = (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = 1 + odd / (1 + even / fraction)
    return front / fraction


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method, in the order given.

    The r-th smallest of m is multiplied by m - r + 1, at most 1 and at least its forerunner. Below
    ALPHA, the chance of one false difference or more among all m is at most ALPHA.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted
