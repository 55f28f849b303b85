"""Figures against positions: points of curves, wherever records hold them, and a plot of them.

A figure is a point of a curve if its note `position` is a number; the curve is that of its suite,
metric and task, whose name ends before a last colon ("wikitext2:512-1023").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.columns import AgainstPosition, SuiteTable
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITION, PANEL = "position", "panel"


@dataclass(frozen=True)
class Point:
    """A figure at a position, with its standard error."""

    position: float
    value: float
    stderr: float | None
    unit: str


def curves_of(row: Row) -> dict[FigureKey, list[Point]]:
    """The curves of a row by suite, task and metric, each in the order of positions."""
    found: dict[FigureKey, list[Point]] = {}
    for key, figure in row.figures.items():
        at = _number(figure.note(POSITION))
        if at is not None:
            point = Point(at, figure.value, figure.stderr, figure.unit)
            found.setdefault(_curve(key), []).append(point)
    return {key: sorted(points, key=lambda each: each.position) for key, points in found.items()}


def lines_of(row: Row, suite: str, plot: AgainstPosition) -> dict[str, dict[str, list[Point]]]:
    """The curves of a row by panel and by the name of their line (AgainstPosition.by)."""
    found: dict[str, dict[str, list[Point]]] = {}
    for key, points in curves_of(row).items():
        if key[0] != suite or key[2] != plot.metric:
            continue
        figure = next(f for k, f in row.figures.items() if _curve(k) == key)
        found.setdefault(figure.note(PANEL), {})[figure.note(plot.by)] = points
    return found


def _curve(key: FigureKey) -> FigureKey:
    """The curve that a figure is a point of."""
    suite, task, metric = key
    return suite, task.rpartition(":")[0] or task, metric


def curve_name(key: FigureKey, declared: Mapping[str, SuiteTable]) -> str:
    """What a curve shows, in the words of its suite if that declares it."""
    suite, task, metric = key
    said = [each.axis for each in declared[suite].curves if each.metric == metric]
    return f"{task}: {said[0] if said else metric}"


def _number(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def panels_of(rows: Sequence[Row], suite: str, plot: AgainstPosition) -> list[FigureKey]:
    """The curves of the plot that any row has, one a task."""
    keys = {key for row in rows for key in curves_of(row)}
    return sorted(key for key in keys if key[0] == suite and key[2] == plot.metric)


def curve_panel(
    panel: Axes,
    title: str,
    curves: Sequence[Sequence[Point]],
    axis: str,
    styles: Sequence[Mapping[str, Any]],
) -> list[float]:
    """Draw curves, each with its style and its standard error as a band; return their values."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    positions: list[float] = []
    values: list[float] = []
    for points, style in zip(curves, styles, strict=True):
        if not points:
            continue
        x = [each.position for each in points]
        y = [each.value for each in points]
        errors = [each.stderr or 0.0 for each in points]
        panel.plot(x, y, markersize=3.5, **style)
        low = [value - error for value, error in zip(y, errors, strict=True)]
        high = [value + error for value, error in zip(y, errors, strict=True)]
        panel.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
        positions, values = positions + x, values + y
    panel.set_xscale("log", base=2)
    powers = range(math.floor(math.log2(min(positions))), math.ceil(math.log2(max(positions))) + 1)
    step = -(-len(powers) // 9)
    panel.xaxis.set_major_locator(FixedLocator([2.0**power for power in powers[::step]]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("position in the context, tokens")
    panel.set_ylabel(axis)
    panel.set_title(title)
    return values
