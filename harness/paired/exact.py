"""Tests of paired differences and their correction; imports no heavy library until it is asked.

McNemar (1947) in its exact form, Student's paired t, Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

ALPHA = 0.05  # two-sided, of every test and interval here


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
    """P(|T| >= |t|) of Student's t."""
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(t)))


@lru_cache(maxsize=256)
def student_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


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
