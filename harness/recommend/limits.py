"""What a cell is asked to keep to, and the figures that say whether it does, with intervals.

Figures are told apart by their unit: nats (divergence), ppl (perplexity), fractions of right
answers. An interval has the level 1 - ALPHA of harness.paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import ConfigError
from harness.paired.bootstrap import interval, resampled_sums
from harness.paired.comparison import same_units
from harness.paired.exact import ALPHA
from harness.records.items import values_of, weights_of
from harness.report.columns import Shown
from harness.report.differences import reference_of
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import small

NORMAL = 1.959963984540054  # the quantile of the normal distribution at 1 - ALPHA / 2


@dataclass(frozen=True)
class Limits:
    """What is asked; None: anything.

    max_gb         10^9 bytes of serving memory, at `context` tokens (None: as tables have it).
    max_kld        nats a position from full precision.
    max_ppl_ratio  perplexity over that of full precision.
    min_accuracy   share of right answers, on every task.
    """

    max_gb: float | None = None
    context: int | None = None
    max_kld: float | None = None
    max_ppl_ratio: float | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not math.isfinite(value):
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} {value} is no limit: use a number, or leave it out.")
        for name, option in (("max_gb", "--max-gb"), ("context", "--context")):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{option} {value:g} leaves no room; use a number above 0.")
        if self.max_kld is not None and self.max_kld < 0:
            raise ConfigError(f"--max-kld {self.max_kld:g} is negative, which no divergence is.")
        if self.max_ppl_ratio is not None and self.max_ppl_ratio < 0.5:
            raise ConfigError(
                f"--max-ppl-ratio {self.max_ppl_ratio:g} is below half of full precision's "
                "perplexity; a ratio such as 1.05 allows 5 % more."
            )
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 1:
            raise ConfigError(
                f"--min-accuracy {self.min_accuracy:g} is no share; use a number from 0 to 1, as "
                "in 0.6."
            )


@dataclass(frozen=True)
class Measured:
    """A figure of a cell; low and high: its interval, None where nothing gives one.

    task  the task, and of several figures of it which.
    """

    task: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Criterion:
    """A kind of figure that can be limited.

    name     in sentences; short: in heads of columns.
    suite    that measures it; unit: of its figures in records.
    limit    the limit among all that are asked.
    lowest   True: the figure has to reach the limit; False: not to exceed it.
    """

    name: str
    short: str
    suite: str
    unit: str
    limit: Callable[[Limits], float | None]
    lowest: bool = False

    def keys(self, shown: Sequence[Shown], rows: Sequence[Row]) -> list[Shown]:
        """The columns of this kind."""
        return [
            each
            for each in shown
            if any(self._is(row.figures[each.key]) for row in rows if each.key in row.figures)
        ]

    def _is(self, figure: Figure) -> bool:
        return figure.unit == self.unit and figure.higher_is_better == self.lowest

    def breaks(self, value: float, limit: float) -> bool:
        """Whether a value breaks a limit."""
        return value < limit if self.lowest else value > limit

    def text(self, value: float) -> str:
        """A measured value, in per cent if it is a share."""
        if self.unit == "fraction":
            return f"{100 * value:.1f} %"
        return small(value, 3) if self.unit == "nat" else f"{value:.4f}"

    def limit_text(self, value: float) -> str:
        """A limit, with the digits that it was given."""
        return f"{100 * value:g} %" if self.unit == "fraction" else f"{value:g}"

    def worst(self, found: Sequence[Measured]) -> Measured:
        """The worst figure of several tasks."""
        order = sorted(found, key=lambda each: each.value)
        return order[0] if self.lowest else order[-1]

    def tasks(self, shown: Sequence[Shown], rows: Sequence[Row]) -> dict[FigureKey, str]:
        """What the figures of each column are called."""
        keys = [each.key for each in self.keys(shown, rows)]
        several = {task for _, task, _ in keys if sum(key[1] == task for key in keys) > 1}
        return {key: f"{key[1]} {key[2]}" if key[1] in several else key[1] for key in keys}


KLD = Criterion("KL divergence", "KL", "divergence", "nat", lambda limits: limits.max_kld)
RATIO = Criterion(
    "perplexity over full precision", "ppl ratio", "perplexity", "ppl",
    lambda limits: limits.max_ppl_ratio,
)  # fmt: skip
ACCURACY = Criterion(
    "accuracy", "accuracy", "zeroshot", "fraction", lambda limits: limits.min_accuracy, lowest=True
)
CRITERIA = (KLD, RATIO, ACCURACY)


def measured(
    criterion: Criterion, row: Row, rows: Sequence[Row], shown: Sequence[Shown]
) -> list[Measured]:
    """The figures of a row for a criterion, one a task; rows hold those of full precision."""
    found = []
    for key, task in criterion.tasks(shown, rows).items():
        figure = row.figures.get(key)
        if criterion is KLD and row.full_precision:  # it is what the others are held against
            found.append(Measured(task, 0.0, 0.0, 0.0))
        elif figure is not None and criterion is RATIO:
            ratio = _ratio(row, rows, key, task)
            found += [] if ratio is None else [ratio]
        elif figure is not None:
            found.append(_plain(task, figure))
    return found


def _plain(task: str, figure: Figure) -> Measured:
    """A figure with the bootstrap interval of its units, that of a share, or of its error."""
    items = figure.items
    if len(items) == 1 and _is_share(figure):
        return Measured(task, figure.value, *exact_share(round(values_of(items[0]).sum()),
                                                         items[0].count))  # fmt: skip
    if items:
        weights = weights_of(items[0])
        values = [values_of(each) for each in items]
        drawn = resampled_sums(np.column_stack([weights, *values]), items[0].ids)
        ratios = drawn[:, 1:] / drawn[:, :1]
        ratios = np.exp(ratios) if items[0].exponential else ratios
        return Measured(task, figure.value, *interval(ratios.mean(axis=1)))
    if figure.stderr is None:
        return Measured(task, figure.value)
    margin = NORMAL * figure.stderr
    low, high = max(0.0, figure.value - margin), figure.value + margin
    return Measured(task, figure.value, low, min(1.0, high) if figure.unit == "fraction" else high)


def _is_share(figure: Figure) -> bool:
    (items,) = figure.items
    plain = items.weights is None and not items.exponential
    return plain and bool(np.isin(values_of(items), (0.0, 1.0)).all())


def exact_share(right: int, count: int) -> tuple[float, float]:
    """The interval of Clopper and Pearson (1934) of `right` answers out of `count`."""
    from scipy.special import betaincinv

    low = betaincinv(right, count - right + 1, ALPHA / 2) if right else 0.0
    high = betaincinv(right + 1, count - right, 1 - ALPHA / 2) if right < count else 1.0
    return float(low), float(high)


def _ratio(row: Row, rows: Sequence[Row], key: FigureKey, task: str) -> Measured | None:
    """Perplexity over full precision's on the same windows; None without it."""
    figure = row.figures[key]
    if row.full_precision:
        return Measured(task, 1.0, 1.0, 1.0)
    full = [index for index, each in enumerate(rows) if each.full_precision]
    place = reference_of(row, rows, full, key)
    if place is None:
        return None
    reference = rows[place].figures[key]
    value = figure.value / reference.value
    sides = (reference.items, figure.items)
    if not all(sides):
        alike = (figure.n, figure.token_hash) == (reference.n, reference.token_hash)
        return Measured(task, value) if alike else None
    if not same_units(*sides):
        return None
    weights = weights_of(figure.items[0])
    columns = [np.mean([values_of(each) for each in side], axis=0) for side in sides]
    drawn = resampled_sums(np.column_stack([weights, *columns]), figure.items[0].ids)
    low, high = interval((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0])
    return Measured(task, value, math.exp(low), math.exp(high))
