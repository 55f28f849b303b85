"""The plots of figures against the position in the context: a line per row, with its error.

The same rows give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.report.columns import AgainstPosition, SuiteTable
from harness.report.curves import curve_panel, curves_of, panels_of
from harness.report.plot_style import add_legend, logarithmic, own_style, panels_in, save
from harness.report.plots import DASHES, MARKERS, REFERENCE, Drawn, colour_of
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(rows: list[Row], declared: Mapping[str, SuiteTable]) -> list[Drawn]:
    """The plots that suites declare as curves, of the rows of one model."""
    drawn = []
    with own_style():
        for suite, table in declared.items():
            for curve in table.curves:
                if panels := panels_of(rows, suite, curve):
                    figure = curves_figure(rows, panels, curve)
                    drawn.append(Drawn(curve.name, curve.title, save(figure)))
    return drawn


def curves_figure(rows: list[Row], keys: list[FigureKey], plot: AgainstPosition) -> Figure:
    """One panel per task, one line per row with its standard error as a band.

    Lines of one method have its colour and, from the second on, dashes.
    """
    from matplotlib.lines import Line2D

    shown = [row for row in rows if any(key in curves_of(row) for key in keys)]
    styles: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(shown):
        if row.full_precision:
            styles[number] = {"color": REFERENCE, "linestyle": "--"}
            continue
        alike = sum(row.name == other.name for other in shown[:number])
        styles[number] = {
            "color": colour_of(row.name, rows),
            "linestyle": DASHES[alike % len(DASHES)],
            "marker": MARKERS[alike % len(MARKERS)],
        }
    figure, panels = panels_in(len(keys), 0.3)
    for panel, key in zip(panels, keys, strict=True):
        logarithmic(panel, curve_panel(panel, shown, key, plot.axis, styles), math.inf)
    if any(key[1] != rows[0].model for key in keys):  # a panel has the name of its text
        figure.suptitle(rows[0].model, fontsize=9.5, fontweight="bold")
    handles = [
        Line2D([], [], markersize=3.5, label=f"{row.name} {row.scheme_label}", **styles[number])
        for number, row in enumerate(shown)
    ]
    add_legend(figure, handles)
    return figure
