"""The plots of figures against the position in the context: a line per row, with its error.

The same rows give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report.columns import AgainstPosition
from harness.report.curves import curve_panel, curves_of, lines_of, panels_of
from harness.report.leading import MOST_LINES, MOST_PANELS, Leading, some_of
from harness.report.plot_style import add_legend, logarithmic, panels_in
from harness.report.plots import (
    CALIBRATED,
    DASHES,
    MARKERS,
    MORE_COLOURS,
    REFERENCE,
    UNCALIBRATED,
    Plot,
    colour_of,
)
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (UNCALIBRATED, CALIBRATED, *MORE_COLOURS)


def curve_plots(leading: Leading) -> list[Plot]:
    """The plots that suites declare as curves, of the rows of one model."""
    return [
        Plot(curve.name, curve.title, partial(_figure, leading, suite, curve, panels))
        for suite, table in leading.declared.items()
        for curve in table.curves
        if (panels := panels_of(leading.rows, suite, curve))
    ]


def _figure(
    leading: Leading,
    suite: str,
    curve: AgainstPosition,
    panels: list[FigureKey],
) -> Figure:
    having = [row for row in leading.rows if any(key in curves_of(row) for key in panels)]
    shown = leading.rows_of(having, MOST_PANELS if curve.by else MOST_LINES)
    said = some_of(len(shown), len(having), "rows")
    if curve.by:
        return lines_figure(shown, suite, curve, said)
    return curves_figure(shown, panels, curve, leading.rows, said)


def curves_figure(
    rows: list[Row],
    keys: list[FigureKey],
    plot: AgainstPosition,
    every: Sequence[Row] = (),
    said: str = "",
) -> Figure:
    """One panel per task, one line per row with its standard error as a band.

    every  all rows of the model, in whose order methods have their colours; (): `rows`.
    said   after the name of the model, which rows these are.

    Lines of one method have its colour and, from the second on, dashes; where `said` is not empty,
    no two lines look alike.
    """
    from matplotlib.lines import Line2D

    shown = [row for row in rows if any(key in curves_of(row) for key in keys)]
    styles: list[dict[str, Any]] = []
    for number, row in enumerate(shown):
        if row.full_precision:
            styles.append({"color": REFERENCE, "linestyle": "--"})
            continue
        if said:  # of many methods, whose colours come again
            again, place = divmod(number, len(COLOURS))
            colour = COLOURS[place]
        else:
            again = sum(row.name == other.name for other in shown[:number])
            colour = colour_of(row.name, list(every) or rows)
        styles.append(
            {
                "color": colour,
                "linestyle": DASHES[again % len(DASHES)],
                "marker": MARKERS[again % len(MARKERS)],
            }
        )
    keys = [key for key in keys if any(key in curves_of(row) for row in rows)]
    figure, panels = panels_in(len(keys), 0.3)
    for panel, key in zip(panels, keys, strict=True):
        curves = [curves_of(row).get(key, []) for row in shown]
        logarithmic(panel, curve_panel(panel, key[1], curves, plot.axis, styles), math.inf)
    if said or any(key[1] != rows[0].model for key in keys):  # a panel has the name of its text
        figure.suptitle(f"{rows[0].model}{said}", fontsize=9.5, fontweight="bold")
    handles = [
        Line2D([], [], markersize=3.5, label=f"{row.name} {row.scheme_label}", **styles[number])
        for number, row in enumerate(shown)
    ]
    add_legend(figure, handles)
    return figure


def lines_figure(rows: list[Row], suite: str, plot: AgainstPosition, said: str = "") -> Figure:
    """One panel per row and note `panel`, one line for each name in it (AgainstPosition.by).

    said  after the name of the model, which rows these are.
    """
    from matplotlib.lines import Line2D

    places = [
        (f"{row.name} {row.scheme_label}, {name}", lines)
        for row in rows
        for name, lines in lines_of(row, suite, plot).items()
    ]
    names = list(dict.fromkeys(name for _, lines in places for name in lines))
    styles: dict[str, dict[str, Any]] = {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        for number, name in enumerate(names)
    }
    figure, panels = panels_in(len(places), 0.3)
    for panel, (title, lines) in zip(panels, places, strict=True):
        curves = [lines.get(name, []) for name in names]
        drawn = curve_panel(panel, title, curves, plot.axis, [styles[name] for name in names])
        logarithmic(panel, drawn, math.inf)
    figure.suptitle(f"{rows[0].model}{said}", fontsize=9.5, fontweight="bold")
    handles = [Line2D([], [], markersize=3.5, label=name, **styles[name]) for name in names]
    add_legend(figure, handles)
    return figure
