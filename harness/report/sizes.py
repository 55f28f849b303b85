"""The plots of columns against the size of models: one line per method and scheme.

Drawn for figures of two models or more whose sizes records state, on the same task; each family of
models has a panel of its own. Published figures stand beside ours as hollow markers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report.assemble import columns_in_order
from harness.report.columns import AgainstBits, SuiteTable
from harness.report.plot_style import add_legend, error_handle, logarithmic, panels_in
from harness.report.plots import DASHES, MARKERS, REFERENCE, Plot, colour_of
from harness.report.published import published_value
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIX = "by_size"
AXIS = "parameters of the model"


def size_plots(rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> list[Plot]:
    """The plots against size, of all models' rows; empty unless two sizes have a figure."""
    rows = [row for row in rows if row.parameters]
    wanted: dict[AgainstBits, dict[FigureKey, str]] = {}
    for each in columns_in_order(list(rows), declared):
        plot, key = each.declared.plot, each.key
        sizes = {row.parameters for row in rows if key in row.figures}
        if isinstance(plot, AgainstBits) and len(sizes) > 1:
            wanted.setdefault(plot, {})[key] = each.declared.named
    return [
        Plot(
            f"{plot.name}_{SUFFIX}",
            f"{plot.title.partition(' against ')[0]} against the size of the model",
            partial(size_figure, rows, names, plot),
        )
        for plot, names in wanted.items()
    ]


def size_figure(rows: Sequence[Row], names: Mapping[FigureKey, str], plot: AgainstBits) -> Figure:
    """One panel per figure and family of models, bars of ± 1 error; full precision is dashed.

    names  the quantity of every figure, for the axis.
    """
    from matplotlib.lines import Line2D

    wanted = [(key, family) for key in names for family in _families(rows, key)]
    figure, panels = panels_in(len(wanted), 0.0)
    handles: dict[str, Any] = {}
    first: dict[FigureKey, Axes] = {}
    for panel, (key, family) in zip(panels, wanted, strict=True):
        shown = [row for row in rows if key in row.figures]
        if key in first:
            panel.sharey(first[key])
        first.setdefault(key, panel)
        _panel(panel, [row for row in shown if _family(row) == family], shown, key, handles)
        panel.set_title(f"{family}: {key[1]}")
        percent = ", %" * (shown[0].figures[key].unit == "fraction")
        panel.set_ylabel(f"{names[key]}{percent}")
        panel.set_xlabel(AXIS)
        if plot.logarithmic:
            logarithmic(panel, [row.figures[key].value for row in shown], math.inf)
    if any(line.get_markerfacecolor() == "white" for panel in panels for line in panel.lines):
        handles["published"] = Line2D(
            [], [], color=REFERENCE, marker="o", markerfacecolor="white", linestyle="none"
        )
    for label, handle in handles.items():
        handle.set_label(label)
    add_legend(figure, [*handles.values(), error_handle()])
    return figure


def _panel(
    panel: Axes,
    rows: Sequence[Row],
    every: Sequence[Row],
    key: FigureKey,
    handles: dict[str, Any],
) -> None:
    """Draw the rows of one family; colours are those of methods, markers of schemes, of all."""
    from matplotlib.lines import Line2D

    factor = 100.0 if every[0].figures[key].unit == "fraction" else 1.0
    schemes = sorted({row.scheme for row in every if not row.full_precision}, reverse=True)
    for name, series in _lines(rows).items():
        first = series[0]
        number = -1 if first.full_precision else schemes.index(first.scheme)
        style: dict[str, Any] = {
            "color": REFERENCE if first.full_precision else colour_of(first.name, list(every)),
            "linestyle": "--" if first.full_precision else DASHES[number % len(DASHES)],
            "marker": MARKERS[(number + 1) % len(MARKERS)],
        }
        figures = [row.figures[key] for row in series]
        panel.errorbar(
            [row.parameters or 0.0 for row in series],
            [factor * each.value for each in figures],
            yerr=[factor * (each.stderr or 0.0) for each in figures],
            capsize=2.5,
            elinewidth=1.0,
            **style,
        )
        handles.setdefault(name, Line2D([], [], **style))
        beside = [
            (row, value) for row in series if (value := published_value(row, key)) is not None
        ]
        hollow = {**style, "linestyle": "none", "markerfacecolor": "white", "markersize": 7}
        panel.plot(
            [row.parameters or 0.0 for row, _ in beside],
            [factor * value for _, value in beside],
            zorder=1,
            **hollow,
        )
    _axis_of_sizes(panel)


def _axis_of_sizes(panel: Axes) -> None:
    """A logarithmic axis with labels such as "300M" and "1B", far enough apart to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 3)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    panel.xaxis.set_minor_locator(NullLocator())


def _short(parameters: float) -> str:
    return f"{parameters / 1e9:g}B" if parameters >= 1e9 else f"{parameters / 1e6:g}M"


def _family(row: Row) -> str:
    return row.model.partition("-")[0]


def _families(rows: Sequence[Row], key: FigureKey) -> list[str]:
    """The families with the figure, that with the smallest model first."""
    found = sorted((row for row in rows if key in row.figures), key=lambda row: row.parameters or 0)
    return list(dict.fromkeys(_family(row) for row in found))


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each line by its name, ascending in size."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.parameters or 0.0):
        name = "full precision" if row.full_precision else f"{row.name} {row.scheme}"
        found.setdefault(name, []).append(row)
    return dict(sorted(found.items(), key=lambda each: (not each[1][0].full_precision, each[0])))
