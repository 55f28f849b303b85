"""The minimum detectable effect: the smallest difference that a set of units is likely to show.

Likely: the test of one comparison at ALPHA, two-sided, finds it with probability POWER. Smaller
differences may be there; the set cannot be relied on to show them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from harness.paired.exact import ALPHA, student_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

POWER = 0.8
DEVIATIONS = 6.0  # counts further from their mean are left out of sums: less than 1e-8 of them
STEPS = 16  # of the bisection
FEWEST_WINDOWS = 3  # with two, the approximation by Student's quantiles is off by more than 10 %


@lru_cache(maxsize=4096)
def detectable_loss(documents: int, discordance: float) -> float | None:
    """The smallest loss of accuracy (a share) that the exact McNemar test shows; None: not any.

    discordance  the share of documents that are right in one row and wrong in the other. A loss
                 needs as many at least, so a larger loss than it has the loss itself as its share,
                 and no document is gained.

    For a gain it is the same, by symmetry.
    """
    if mcnemar_power(documents, discordance, 1.0) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if mcnemar_power(documents, discordance, middle) < POWER:
            low = middle
        else:
            high = middle
    return high


def mcnemar_power(documents: int, discordance: float, loss: float) -> float:
    """The probability that the exact McNemar test of a loss of accuracy has p < ALPHA.

    The number of discordant documents is binomial, and so is, of these, that of lost ones with the
    share (discordance + loss) / (2 discordance). Both sums are exact but for DEVIATIONS.
    """
    share = max(discordance, loss)
    if not 0 <= share <= 1:
        raise ValueError(f"discordance {discordance} and loss {loss} are not shares")
    if share == 0:
        return 0.0
    lost = (share + loss) / (2 * share)
    width = DEVIATIONS * math.sqrt(documents * share * (1 - share)) + DEVIATIONS
    least = max(0, math.floor(documents * share - width))
    most = min(documents, math.ceil(documents * share + width))
    pairs = np.arange(least, most + 1)
    found = [_rejected(int(count), lost) for count in pairs]
    return float(_binomial(documents, share)[pairs] @ np.array(found))


def detectable_shift(windows: int, spread: float) -> float | None:
    """The smallest mean difference of losses (nats a token) that the paired t test shows.

    spread  standard deviation over windows of the paired differences, nats a token. None for fewer
            than FEWEST_WINDOWS. The noncentral t distribution is approximated by a shifted one.
    """
    if windows < FEWEST_WINDOWS:
        return None
    freedom = windows - 1
    quantiles = student_quantile(1 - ALPHA / 2, freedom) + student_quantile(POWER, freedom)
    return quantiles * spread / math.sqrt(windows)


def _rejected(pairs: int, lost: float) -> float:
    """P(the test rejects | the number of discordant pairs)."""
    critical = _critical(pairs)
    if critical < 0:
        return 0.0
    chances = _binomial(pairs, lost)
    return float(chances[: critical + 1].sum() + chances[pairs - critical :].sum())


@lru_cache(maxsize=65536)
def _critical(pairs: int) -> int:
    """The largest smaller count of `pairs` with p < ALPHA; -1 if there is none."""
    tails = 2 * np.cumsum(_binomial(pairs, 0.5)[: (pairs + 1) // 2])
    return int(np.searchsorted(tails, ALPHA)) - 1


def _binomial(trials: int, share: float) -> Array:
    """Probabilities of 0 to `trials` successes: float64 [trials + 1]."""
    if share in (0.0, 1.0):
        sure: Array = np.zeros(trials + 1)
        sure[trials if share else 0] = 1.0
        return sure
    successes = np.arange(trials + 1)
    logs = _log_factorials(trials)
    ways = logs[trials] - logs[successes] - logs[trials - successes]
    chances: Array = np.exp(
        ways + successes * math.log(share) + (trials - successes) * math.log1p(-share)
    )
    return chances


def _log_factorials(largest: int) -> Array:
    """log(n!) for n from 0 to at least `largest`."""
    return _log_factorials_up_to(1 << max(10, largest.bit_length()))


@lru_cache(maxsize=8)
def _log_factorials_up_to(size: int) -> Array:
    found: Array = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, size)))])
    return found
