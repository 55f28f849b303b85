"""Resampled sums, against the theory of sampling and a listing of all resamples."""

import numpy as np
import pytest

from harness.paired import bootstrap
from harness.paired.bootstrap import RESAMPLES, interval, resampled_sums, rounded


def test_the_same_units_are_drawn_for_whoever_asks() -> None:
    values = np.arange(30.0)
    alone = resampled_sums(values[:, None], "ids")
    beside = resampled_sums(np.column_stack([values, values**2]), "ids")
    assert np.array_equal(alone[:, 0], beside[:, 0])
    assert not np.array_equal(alone, resampled_sums(values[:, None], "other ids"))


def test_every_resample_has_as_many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 1000)  # in several parts
    ones = resampled_sums(np.ones((7, 1)), "ids")
    assert ones.shape == (RESAMPLES, 1)
    assert (ones == 7).all()


def test_means_spread_as_theory_says() -> None:
    values = np.random.default_rng(1).exponential(size=200)
    means = resampled_sums(values[:, None], "ids")[:, 0] / 200
    assert means.mean() == pytest.approx(values.mean(), abs=4 * means.std() / RESAMPLES**0.5)
    assert means.std() == pytest.approx(values.std() / 200**0.5, rel=0.05)


def test_the_interval_is_that_of_all_resamples() -> None:
    """Of 27 resamples of three units one in 27 has the smallest alone: more than 2.5 %."""
    drawn = resampled_sums(np.array([[0.0], [1.0], [5.0]]), "ids")[:, 0] / 3
    assert interval(drawn) == (0.0, 5.0)


def test_the_interval_covers_a_known_difference() -> None:
    """A thousand sets of sixty pairs of a known model, all resampled at once."""
    generator, true = np.random.default_rng(7), 0.3
    common = generator.gamma(2.0, size=(60, 1000))  # what pairing takes away
    first = common + generator.normal(0, 0.5, size=common.shape)
    second = common + true + generator.normal(0, 0.5, size=common.shape)
    drawn = resampled_sums(second - first, "ids") / 60
    covered = [low <= true <= high for low, high in map(interval, drawn.T)]
    assert 0.92 < np.mean(covered) < 0.97


def test_digits_beyond_the_tenth_are_dropped() -> None:
    assert rounded(1 / 3) == 0.3333333333
    assert rounded(-12345.678901234) == -12345.6789
    assert rounded(0.0) == 0.0
