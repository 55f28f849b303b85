"""Minimum detectable effects, against listings of all outcomes and against simulated sets."""

import math
from functools import cache

import numpy as np
import pytest

from harness.paired.power import detectable_loss, detectable_shift, mcnemar_power

SETS = 4000


@cache
def p_value(lost: int, gained: int) -> float:
    """The exact test, by the definition."""
    pairs = lost + gained
    ways = sum(math.comb(pairs, k) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * ways / 2**pairs)


@pytest.mark.parametrize(
    ("documents", "discordance", "loss"), [(9, 0.4, 0.3), (14, 0.3, 0.3), (20, 0.05, 0.5)]
)
def test_the_power_is_the_sum_over_all_outcomes(
    documents: int, discordance: float, loss: float
) -> None:
    share = max(discordance, loss)
    lost, gained = (share + loss) / 2, (share - loss) / 2
    expected = 0.0
    for b in range(documents + 1):
        for c in range(documents + 1 - b):
            ways = math.comb(documents, b) * math.comb(documents - b, c)
            chance = ways * lost**b * gained**c * (1 - share) ** (documents - b - c)
            expected += chance * (p_value(b, c) < 0.05)
    assert mcnemar_power(documents, discordance, loss) == pytest.approx(expected, rel=1e-6)


def simulated_power(documents: int, discordance: float, loss: float) -> float:
    """The share of simulated sets of documents whose exact test finds the loss."""
    share = max(discordance, loss)
    chances = [(share + loss) / 2, (share - loss) / 2, 1 - share]
    drawn = np.random.default_rng(11).multinomial(documents, chances, size=SETS)
    outcomes, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    found = [p_value(int(b), int(c)) < 0.05 for b, c in outcomes]
    return float(counts @ np.array(found)) / SETS


@pytest.mark.parametrize(
    ("documents", "discordance"), [(100, 0.02), (100, 0.1), (500, 0.05), (1000, 0.2)]
)
def test_the_loss_is_that_of_simulated_sets_to_a_tenth(documents: int, discordance: float) -> None:
    loss = detectable_loss(documents, discordance)
    assert loss is not None
    assert simulated_power(documents, discordance, 0.9 * loss) < 0.8
    assert simulated_power(documents, discordance, 1.1 * loss) > 0.8


def test_a_loss_of_hundred_documents_by_hand() -> None:
    """Without any gained, six discordant ones are needed: P(B(100, loss) >= 6) = 0.8."""

    def at_least_six(share: float) -> float:
        return 1 - sum(math.comb(100, k) * share**k * (1 - share) ** (100 - k) for k in range(6))

    loss = detectable_loss(100, 0.0)
    assert loss is not None
    assert at_least_six(loss) == pytest.approx(0.8, abs=1e-3)
    assert loss == pytest.approx(0.078, abs=2e-3)


def test_few_documents_show_nothing_and_six_nearly_nothing() -> None:
    assert detectable_loss(5, 0.1) is None
    assert detectable_loss(6, 0.1) == pytest.approx(0.8 ** (1 / 6), abs=1e-4)


def test_more_documents_show_less_and_more_changes_hide_more() -> None:
    by_size = [detectable_loss(n, 0.05) or 1.0 for n in (50, 200, 1000, 5000)]
    assert by_size == sorted(by_size, reverse=True)
    by_rate = [detectable_loss(500, rate) or 1.0 for rate in (0.0, 0.05, 0.2, 0.5)]
    assert by_rate == sorted(by_rate)


def test_what_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="not shares"):
        mcnemar_power(10, 1.5, 0.1)


@pytest.mark.parametrize(("windows", "critical"), [(3, 4.302653), (12, 2.200985), (200, 1.971957)])
def test_the_shift_is_that_of_simulated_windows_to_a_tenth(windows: int, critical: float) -> None:
    """With the quantiles of printed tables, on normal differences of spread 0.02."""
    shift = detectable_shift(windows, 0.02)
    assert shift is not None
    noise = np.random.default_rng(13).normal(0, 0.02, size=(SETS, windows))

    def power(true: float) -> float:
        drawn = noise + true
        t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(windows))
        return float(np.mean(np.abs(t) > critical))

    assert power(0.9 * shift) < 0.8 < power(1.1 * shift)


def test_two_windows_show_nothing() -> None:
    assert detectable_shift(2, 0.02) is None
