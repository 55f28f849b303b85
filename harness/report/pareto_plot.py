"""The plot of Pareto fronts: figures against memory and time, with the rows that no other beats."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report.columns import Shown, SuiteTable
from harness.report.leading import MOST_METHODS, Leading
from harness.report.pareto import Axis, cost_axes, dominators, quality_axis, quality_columns
from harness.report.plot_style import add_legend, panels_in
from harness.report.plots import (
    OTHERS,
    REFERENCE,
    Plot,
    colour_of,
    kind_handle,
    kind_of,
    kinds_of,
    marker_of,
    most_told_apart,
    others_handle,
    turn_of,
    turns_in,
)
from harness.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as Scale
    from matplotlib.figure import Figure

NAME, TITLE = "pareto", "Pareto fronts"
FAR = 3.0  # an axis is logarithmic where the largest value is more than so many times the smallest
FULL_MARKER, GREY = "*", "#777777"
A_LINE = 3  # panels; so many qualities are drawn at most


def pareto_plots(leading: Leading) -> list[Plot]:
    """The plot of one model's rows; empty where no cost and figure have two rows in common."""
    rows = leading.rows
    costs, qualities = chosen_axes(rows, leading.declared)
    # Six panels stand in lines of three: a line for every cost, or for every quality.
    pairs = [(cost, quality) for cost in costs for quality in qualities]
    if len(costs) == A_LINE:
        pairs = [(cost, quality) for quality in qualities for cost in costs]
    pairs = [pair for pair in pairs if len(dominators(rows, *pair)) > 1]
    return [Plot(NAME, TITLE, partial(pareto_figure, leading, pairs))] if pairs else []


def chosen_axes(
    rows: Sequence[Row], declared: Mapping[str, SuiteTable]
) -> tuple[list[Axis], list[Axis]]:
    """One cost of size, those of time and energy, and the first quality of each unit."""
    costs = cost_axes(rows, declared)
    sizes = [each for each in costs if each.name in ("serving MB", "MB", "bits")]
    units: dict[str, Shown] = {}
    for each in quality_columns(rows, declared):
        figure = next(row.figures[each.key] for row in rows if each.key in row.figures)
        units.setdefault(figure.unit, each)
    found = [quality_axis(each, rows) for each in list(units.values())[:A_LINE]]
    return [*sizes[-1:], *(each for each in costs if each not in sizes)], found


def pareto_figure(leading: Leading, pairs: Sequence[tuple[Axis, Axis]]) -> Figure:
    """A panel for every cost and quality; dominated rows are hollow.

    Of many methods, those on the most fronts have colours.
    """
    rows = leading.rows
    figure, panels = panels_in(len(pairs), 0.3)
    told = leading.methods(min(MOST_METHODS, most_told_apart(rows)))
    for panel, pair in zip(panels, pairs, strict=True):
        _panel(panel, rows, told, *pair)
    figure.suptitle(rows[0].model, fontsize=9.5, fontweight="bold")
    shown = [
        row
        for row in rows
        if any(None not in (cost.value(row), quality.value(row)) for cost, quality in pairs)
    ]
    add_legend(figure, _handles(shown, rows, told))
    return figure


def _panel(panel: Axes, rows: list[Row], told: list[Row], cost: Axis, quality: Axis) -> None:
    """told: the rows of the methods that have colours."""
    found = dominators(rows, cost, quality)
    factor = 100.0 if quality.percent else 1.0
    quantized = [row for row in rows if not row.full_precision]
    names = {row.name for row in told if not row.full_precision}
    colours = {name: colour_of(name, told) for name in names}
    turns = {name: turn_of(name, told) for name in names}
    markers = {
        (kind, turn): marker_of(kind, rows, turn)
        for kind in kinds_of(quantized)
        for turn in {0, *turns.values()}
    }
    points = {
        index: (cost.value(rows[index]) or 0.0, factor * (quality.value(rows[index]) or 0.0))
        for index in found
    }
    front = sorted(points[index] for index, by in found.items() if by is None)
    panel.plot(
        [x for x, _ in front], [y for _, y in front], color=REFERENCE, linestyle=":", zorder=1
    )
    alike: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for index, point in points.items():
        row = rows[index]
        colour = REFERENCE if row.full_precision else colours.get(row.name, OTHERS["color"])
        marker = FULL_MARKER
        if not row.full_precision:
            marker = markers[kind_of(row), turns.get(row.name, 0)]
        filling = "white" if found[index] is not None else colour
        alike.setdefault((colour, marker, filling), []).append(point)
    # What has no colour of its own lies below the rest.
    order = sorted(alike.items(), key=lambda each: each[0][0] != OTHERS["color"])
    for (colour, marker, filling), those in order:
        panel.plot(
            [x for x, _ in those],
            [y for _, y in those],
            marker=marker,
            linestyle="none",
            color=colour,
            markersize=7 if marker == FULL_MARKER else 4.5,
            markerfacecolor=filling,
        )
    if _far([x for x, _ in points.values()]):
        panel.set_xscale("log")
        _label(panel.xaxis, [x for x, _ in points.values()])
    if not quality.percent and _far([y for _, y in points.values()]):
        panel.set_yscale("log")
        _label(panel.yaxis, [y for _, y in points.values()])
    panel.set_xlabel(textwrap.fill(cost.label, 28))  # of three panels side by side, at most
    panel.set_ylabel(f"{quality.label}{', %' * quality.percent}")


def _far(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > FAR * min(values)


def _label(axis: Scale, values: Sequence[float]) -> None:
    """Few labels of a logarithmic axis, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ratio = max(values) / min(values)
    subs = (1, 1.5, 2, 3, 5) if ratio < 15 else (1, 3) if ratio < 1e3 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _handles(shown: list[Row], rows: list[Row], told: list[Row]) -> list[Any]:
    """What the legend explains of the rows that are shown; `told` have colours."""
    from matplotlib.lines import Line2D

    quantized = [row for row in shown if not row.full_precision]
    plain: dict[str, Any] = {"linestyle": "none"}
    coloured = {row.name for row in told}
    kinds, turns = kinds_of(quantized), turns_in(told)
    handles: list[Any] = []
    for name in dict.fromkeys(row.name for row in quantized if row.name in coloured):
        marker = marker_of(kinds[0], rows, turn_of(name, told)) if len(turns) > 1 else "o"
        handles.append(
            Line2D([], [], color=colour_of(name, told), marker=marker, label=name, **plain)
        )
    handles += others_handle([row for row in quantized if row.name not in coloured])
    full = next((row for row in shown if row.full_precision), None)
    if full is not None:
        handles.append(
            Line2D([], [], color=REFERENCE, marker=FULL_MARKER, label=full.scheme_label, **plain)
        )
    handles += [kind_handle(kind, rows, turns) for kind in kinds]
    hollow = {**plain, "marker": "o", "markerfacecolor": "white", "color": GREY}
    handles.append(Line2D([], [], label="dominated", **hollow))
    handles.append(Line2D([], [], color=REFERENCE, linestyle=":", label="front"))
    return handles
