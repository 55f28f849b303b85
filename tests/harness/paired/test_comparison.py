"""Comparisons of rows, against counts by hand, a textbook's example, and plain Python."""

import math
import statistics

import numpy as np
import pytest

from harness.paired.comparison import (
    MCNEMAR,
    PAIRED_T,
    adjusted,
    compare,
    compare_pairs,
    paired_changes,
    same_units,
)
from harness.records.items import DOCUMENTS, WINDOWS, make_items
from harness.records.record import Items


def answers(*right: int, ids: str = "docs") -> Items:
    return make_items(DOCUMENTS, ids, right)


def losses(values: list[float], tokens: list[int], ids: str = "windows") -> Items:
    return make_items(WINDOWS, ids, values, tokens, exponential=True)


def test_answers_by_hand() -> None:
    full = answers(1, 1, 1, 1, 1, 1, 1, 0, 0, 1)
    quantized = answers(0, 0, 0, 0, 0, 0, 1, 1, 0, 1)
    (found,) = compare([full], [[quantized]])
    assert (found.reference, found.value, found.difference) == (0.8, 0.3, -0.5)
    assert (found.lost, found.gained) == (6, 1)
    assert found.test == MCNEMAR
    assert found.p == 2 * (1 + 7) / 2**7
    assert (found.count, found.unit) == (10, "documents")
    assert found.low < -0.5 < found.high <= 0.1
    assert paired_changes(full, quantized)[0] == 0.7


def test_equal_answers_do_not_differ() -> None:
    (found,) = compare([answers(1, 0, 1)], [[answers(1, 0, 1)]])
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert not adjusted([found])[0].significant


def test_windows_of_one_length_are_students_paired_sleepers() -> None:
    """Student (1908), Table: hours of sleep gained under two drugs, t = 4.062 with 9 degrees."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    items = [make_items(DOCUMENTS, "sleepers", hours) for hours in (first, second)]
    (found,) = compare([items[0]], [[items[1]]])
    assert found.test == PAIRED_T
    assert found.p == pytest.approx(0.00283289, rel=1e-5)
    assert found.difference == pytest.approx(1.58)
    assert found.spread == pytest.approx(
        statistics.stdev([b - a for a, b in zip(first, second, strict=True)])
    )
    assert found.lost is None
    assert found.low == pytest.approx(0.95, abs=0.15)  # mean ± 1.96 · 0.389 / 1.05, skewed
    assert found.high == pytest.approx(2.35, abs=0.2)


def test_perplexities_are_ratios_of_sums() -> None:
    tokens = [10, 20, 40, 30, 25, 35]
    before = [12.0, 22.0, 41.0, 33.0, 26.0, 37.0]
    after = [12.5, 22.6, 42.0, 34.5, 26.4, 38.3]
    (found,) = compare([losses(before, tokens)], [[losses(after, tokens)]])
    assert found.reference == pytest.approx(math.exp(sum(before) / sum(tokens)), rel=1e-9)
    assert found.value == pytest.approx(math.exp(sum(after) / sum(tokens)), rel=1e-9)
    assert found.low < found.difference < found.high
    # The interval from draws of another generator, window by window.
    generator = np.random.default_rng(3)
    drawn = []
    for _ in range(3000):
        chosen = generator.integers(6, size=6)
        total = sum(tokens[i] for i in chosen)
        drawn.append(
            math.exp(sum(after[i] for i in chosen) / total)
            - math.exp(sum(before[i] for i in chosen) / total)
        )
    expected = np.quantile(drawn, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(list(expected), rel=0.06)
    changes = [b - a for a, b in zip(before, after, strict=True)]
    ratio = sum(changes) / sum(tokens)
    squares = sum((d - ratio * t) ** 2 for d, t in zip(changes, tokens, strict=True))
    error = math.sqrt(squares * 6 / 5) / sum(tokens)
    assert found.spread == pytest.approx(error * math.sqrt(6), rel=1e-9)


def test_a_shift_of_all_windows_is_found_that_their_errors_hide() -> None:
    generator = np.random.default_rng(5)
    base = generator.normal(300.0, 60.0, size=100)  # the windows differ by far more than the rows
    tokens = [100] * 100
    rows = [
        losses(list(base), tokens),
        losses(list(base + generator.normal(0.5, 0.5, 100)), tokens),
    ]
    (found,) = compare([rows[0]], [[rows[1]]])
    assert found.p is not None
    assert found.p < 1e-9
    assert found.low > 0


def test_seeds_share_their_documents_and_make_no_more_of_them() -> None:
    full = answers(1, 1, 1, 1, 0, 0)
    seeds = [answers(1, 1, 1, 0, 0, 1), answers(1, 1, 0, 0, 0, 0)]
    (found,) = compare([full], [seeds])
    assert found.count == 6
    assert found.value == pytest.approx((4 + 2) / 12)
    assert (found.lost, found.gained) == (1.5, 0.5)  # 1 and 2 lost, 1 and 0 gained
    assert found.test == PAIRED_T
    differences = [0, 0, -0.5, -1, 0, 0.5]
    assert found.spread == pytest.approx(statistics.stdev(differences))
    (twice,) = compare([full], [[seeds[0], seeds[0]]])
    (once,) = compare([full], [[seeds[0]]])
    assert (twice.difference, twice.low, twice.high) == (once.difference, once.low, once.high)


def test_a_row_has_the_same_interval_whatever_it_stands_beside() -> None:
    generator = np.random.default_rng(2)
    rows = [answers(*generator.integers(2, size=40).tolist()) for _ in range(4)]
    together = compare([rows[0]], [[row] for row in rows[1:]])
    assert together == [compare([rows[0]], [[row]])[0] for row in rows[1:]]


def test_a_single_window_has_no_test() -> None:
    (found,) = compare([losses([5.0], [10])], [[losses([6.0], [10])]])
    assert (found.test, found.p, found.spread) == (None, None, None)
    assert adjusted([found]) == [found]


def test_other_units_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compare([answers(1, 0)], [[answers(1, 0, ids="others")]])
    assert not same_units([answers(1, 0)], [answers(1, 0, 1)])


def test_holm_counts_all_that_are_compared_together() -> None:
    full = answers(*[1] * 40)
    rows = [[answers(*[0] * lost, *[1] * (40 - lost))] for lost in (6, 7, 12)]
    found = adjusted(compare([full], rows))
    assert [each.p for each in found] == [2 / 2**6, 2 / 2**7, 2 / 2**12]
    assert [each.adjusted for each in found] == [2 / 2**6, 4 / 2**7, 6 / 2**12]
    assert [each.significant for each in found] == [True, True, True]
    assert not adjusted([found[0], found[0]])[0].significant


def test_pairs_of_many_rows_are_what_each_pair_is_alone() -> None:
    rows = [[answers(*(int((i * k) % 7 > 2) for i in range(30)))] for k in range(1, 5)]
    pairs = [(0, 1), (2, 3), (3, 0)]
    found = compare_pairs(rows, pairs)
    assert list(found) == pairs
    for one, other in pairs:
        assert [found[one, other]] == compare(rows[one], [rows[other]])
    with pytest.raises(ValueError, match="cannot be compared"):
        compare_pairs([*rows, [answers(1, 0)]], pairs)
