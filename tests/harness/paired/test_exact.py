"""Exact tests, against sums of fractions, closed forms, and tables of textbooks."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.paired.exact import holm, mcnemar, paired_t, student, student_quantile


def binomial_two_sided(lost: int, gained: int) -> Fraction:
    """The definition, by listing: all outcomes of fair coins that are no more even than this."""
    pairs = lost + gained
    apart = abs(lost - gained)
    ways = sum(math.comb(pairs, k) for k in range(pairs + 1) if abs(pairs - 2 * k) >= apart)
    return Fraction(ways, 2**pairs)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_sum_over_coins(lost: int, gained: int) -> None:
    expected = binomial_two_sided(lost, gained)
    assert mcnemar(lost, gained) == pytest.approx(float(expected), rel=1e-15)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_mcnemar_of_known_tables() -> None:
    assert mcnemar(1, 9) == 22 / 1024
    assert mcnemar(0, 5) == 2 / 32  # five of five are not enough
    assert mcnemar(0, 6) == 2 / 64
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(7, 7) == 1.0


def test_mcnemar_of_thousands_is_near_the_normal_distribution() -> None:
    z = (7200 - 6900 - 1) / math.sqrt(14100)  # with the correction for continuity
    assert mcnemar(6900, 7200) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        mcnemar(-1, 3)


def test_holm_by_hand() -> None:
    # Sorted: 0.005 · 4, 0.01 · 3, 0.03 · 2, 0.04 · 1; the last is less than its forerunner.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_rejects_what_its_definition_rejects(values: list[float]) -> None:
    """Step down from the smallest until one is not below alpha over the number that is left."""
    rejected: set[int] = set()
    order = sorted(range(len(values)), key=lambda index: values[index])
    for rank, index in enumerate(order):
        if values[index] * (len(values) - rank) >= 0.05:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(values)) if p < 0.05} == rejected


@pytest.mark.parametrize("t", [0.0, 1e-3, 0.5, 1.0, 2.5, 40.0, 1e4])
def test_student_of_one_and_two_degrees_has_closed_forms(t: float) -> None:
    one = 2 / math.pi * math.atan2(1, t)
    root = math.sqrt(2 + t * t)
    two = 2 / (root * (root + t))  # 1 - t / root, without its cancellation
    assert student(t, 1) == pytest.approx(one, rel=1e-10)
    assert student(-t, 2) == pytest.approx(two, rel=1e-10)


@pytest.mark.parametrize("freedom", [3, 7, 30, 199, 5000])
@pytest.mark.parametrize("t", [0.3, 1.7, 4.0])
def test_student_is_the_integral_of_its_density(t: float, freedom: int) -> None:
    log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    scale = math.exp(log) / math.sqrt(freedom * math.pi)

    def density(x: float) -> float:
        return scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    steps = 2000  # Simpson's rule
    width = t / steps
    weights = (1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1))
    inside = sum(w * density(i * width) for i, w in enumerate(weights)) * width / 3
    assert student(t, freedom) == pytest.approx(1 - 2 * inside, rel=1e-9, abs=1e-11)  # of lgamma


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (9, 2.26216), (11, 2.20099), (99, 1.98422)]
)
def test_quantiles_of_printed_tables(freedom: int, expected: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(expected, rel=1e-5)
    assert student_quantile(0.5, freedom) == pytest.approx(0.0, abs=1e-9)


def test_a_difference_without_error_is_sure_and_none_is_none() -> None:
    assert paired_t(0.0, 0.0, 5) == 1.0
    assert paired_t(0.1, 0.0, 5) == 0.0
    assert paired_t(0.3, 0.1, 9) == student(3.0, 9)
