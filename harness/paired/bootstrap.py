"""The paired bootstrap: units drawn with replacement, the same draw for both rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.paired.exact import ALPHA
from harness.records.hashes import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RESAMPLES = 4000
DRAWN_AT_ONCE = 2**21  # units: 16 MB of counts
DIGITS = 10  # beyond these, sums round otherwise on another processor


def resampled_sums(columns: Array, ids: str) -> Array:
    """Sums of every column over RESAMPLES resamples of the rows: float64 [RESAMPLES, columns].

    columns  float64 [units, columns].
    ids      the hash over the units, which is the seed: whoever compares rows on these units, in
             whichever table, draws the same.
    """
    units = len(columns)
    generator = np.random.Generator(np.random.PCG64(int(digest(["bootstrap", ids]), 16)))
    found = np.empty((RESAMPLES, columns.shape[1]))
    at_once = max(1, DRAWN_AT_ONCE // units)
    for start in range(0, RESAMPLES, at_once):
        count = min(at_once, RESAMPLES - start)
        drawn = generator.integers(units, size=(count, units))
        drawn += np.arange(count)[:, None] * units
        times = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        found[start : start + count] = times.astype(np.float64) @ columns
    return found


def interval(values: Array) -> tuple[float, float]:
    """The percentile interval at the level 1 - ALPHA of resampled values [RESAMPLES]."""
    return intervals(values[None])[0]


def intervals(values: Array) -> list[tuple[float, float]]:
    """The percentile intervals at the level 1 - ALPHA of resampled values [n, RESAMPLES]."""
    ordered = np.sort(values, axis=1)  # a third of the time of np.quantile
    lows, highs = (_quantile(ordered, level).tolist() for level in (ALPHA / 2, 1 - ALPHA / 2))
    return [(rounded(low), rounded(high)) for low, high in zip(lows, highs, strict=True)]


def _quantile(ordered: Array, level: float) -> Array:
    """Of every row of sorted values, between its two neighbours in proportion: np.quantile's."""
    place = level * (ordered.shape[1] - 1)
    below = math.floor(place)
    low, high = ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)]
    share = place - below
    found: Array = low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
    return found


def rounded(value: float) -> float:
    """The value to DIGITS significant digits."""
    return float(f"{value:.{DIGITS - 1}e}")
