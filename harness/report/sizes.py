"""The plots of columns against the size of models: one line per method and scheme.

Drawn for figures of two models or more whose sizes records state, on the same task. Published
figures stand beside ours as hollow markers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.assemble import columns_in_order
from harness.report.columns import AgainstBits, SuiteTable
from harness.report.plots import (
    MARKERS,
    PANEL,
    REFERENCE,
    Drawn,
    colour_of,
    logarithmic,
    own_style,
    save,
)
from harness.report.published import published_figures
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIX = "by_size"
AXIS = "parameters"


def draw_by_size(rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> list[Drawn]:
    """The plots against size, of all models' rows; empty unless two sizes have a figure."""
    rows = [row for row in rows if row.parameters]
    wanted: dict[AgainstBits, list[FigureKey]] = {}
    for each in columns_in_order(list(rows), declared):
        plot, key = each.declared.plot, each.key
        sizes = {row.parameters for row in rows if key in row.figures}
        if isinstance(plot, AgainstBits) and len(sizes) > 1:
            wanted.setdefault(plot, []).append(key)
    drawn = []
    with own_style():
        for plot, keys in wanted.items():
            title = f"{plot.name} against the size of the model".capitalize()
            figure = size_figure(rows, list(dict.fromkeys(keys)), plot)
            drawn.append(Drawn(f"{plot.name}_{SUFFIX}", title, save(figure)))
    return drawn


def size_figure(rows: Sequence[Row], keys: Sequence[FigureKey], plot: AgainstBits) -> Figure:
    """One panel per figure, bars of ± 1 error; full precision is dashed."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(PANEL[0] * len(keys) + 2.2, PANEL[1] + 0.9), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for panel, key in zip(panels, keys, strict=True):
        _panel(panel, rows, key, plot, handles)
    if any(handle.get_markerfacecolor() == "white" for panel in panels for handle in panel.lines):
        handles["published"] = Line2D(
            [], [], color=REFERENCE, marker="o", markerfacecolor="white", linestyle="none"
        )
    for label, handle in handles.items():
        handle.set_label(label)
    figure.legend(handles=list(handles.values()), loc="outside right upper")
    return figure


def _panel(
    panel: Axes,
    rows: Sequence[Row],
    key: FigureKey,
    plot: AgainstBits,
    handles: dict[str, Any],
) -> None:
    from matplotlib.lines import Line2D

    shown = [row for row in rows if key in row.figures]
    factor = 100.0 if shown[0].figures[key].unit == "fraction" else 1.0
    values = []
    for number, (name, series) in enumerate(_lines(shown).items()):
        first = series[0]
        style: dict[str, Any] = {
            "color": REFERENCE if first.full_precision else colour_of(first.label, list(rows)),
            "linestyle": "--" if first.full_precision else "-",
            "marker": MARKERS[number % len(MARKERS)],
        }
        sizes = [row.parameters or 0.0 for row in series]
        figures = [row.figures[key] for row in series]
        values += [each.value for each in figures]
        panel.errorbar(
            sizes,
            [factor * each.value for each in figures],
            yerr=[factor * (each.stderr or 0.0) for each in figures],
            capsize=2.5,
            elinewidth=1.0,
            **style,
        )
        handles.setdefault(name, Line2D([], [], **style))
        beside = [(row, value) for row in series if (value := _published(row, key)) is not None]
        hollow = {**style, "linestyle": "none", "markerfacecolor": "white", "markersize": 8}
        panel.plot(
            [row.parameters or 0.0 for row, _ in beside],
            [factor * value for _, value in beside],
            zorder=1,
            **hollow,
        )
    panel.set_xscale("log")
    panel.set_xlabel(AXIS)
    panel.set_ylabel(f"{key[2]}{', %' * (factor != 1)} ± standard error")
    panel.set_title(key[1])
    if plot.logarithmic:
        logarithmic(panel, values, math.inf)


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each line by its name, ascending in size: families of models are apart."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.parameters or 0.0):
        scheme = "full precision" if row.full_precision else f"{row.label} {row.scheme}"
        family = row.model.partition("-")[0]
        found.setdefault(f"{family}, {scheme}", []).append(row)
    return dict(sorted(found.items(), key=lambda each: (not each[1][0].full_precision, each[0])))


def _published(row: Row, key: FigureKey) -> float | None:
    """The published figure of the same model, method, scheme and task."""
    _, task, metric = key
    return next(
        (
            each.value
            for each in published_figures()
            if (each.task, each.metric) == (task, metric) and each.asks_for(row)
        ),
        None,
    )
