"""The plot of columns by row: a figure with its spread, a line a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report.columns import ByRow
from harness.report.plot_style import new_figure
from harness.report.plots import REFERENCE, colour_of
from harness.report.rows import Figure as Measured
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def by_row_figure(
    rows: list[Row], keys: Sequence[FigureKey], plot: ByRow, said: str = ""
) -> Figure:
    """One line per row: the figure (filled, p10 to p90) and the second metric (hollow).

    said  after the name of the model, which rows these are.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedFormatter, FixedLocator

    lines = measured_rows(rows, keys, plot)
    figure = new_figure(6.4, 0.27 * len(lines) + 1.5)
    panel = figure.subplots()
    for height, (row, found, beside) in enumerate(reversed(lines)):
        colour = REFERENCE if row.full_precision else colour_of(row.name, rows)
        low, high = found.low or found.value, found.high or found.value
        panel.plot([low, high], [height, height], color=colour, alpha=0.55, linewidth=2.8)
        panel.plot([found.value], [height], "o", color=colour)
        if beside is not None:
            panel.plot([beside.value], [height], "o", color=REFERENCE, markerfacecolor="white")
    names = [f"{row.name}  {row.scheme_label}" for row, *_ in reversed(lines)]
    panel.yaxis.set_major_locator(FixedLocator(range(len(lines))))
    panel.yaxis.set_major_formatter(FixedFormatter(names))
    panel.set_xlim(left=0)
    panel.set_ylim(-0.6, len(lines) - 0.4)  # no marker cut by the axis
    panel.grid(visible=False, axis="y")
    panel.set_xlabel(plot.axis)
    panel.set_title(f"{rows[0].model}{said}", fontsize=9.5, fontweight="bold")
    if plot.beside is not None and any(beside is not None for *_, beside in lines):
        hollow = Line2D(
            [],
            [],
            color=REFERENCE,
            marker="o",
            markerfacecolor="white",
            linestyle="none",
            label=plot.beside[1],
        )
        figure.legend(handles=[hollow], loc="outside lower right")
    return figure


def measured_rows(
    rows: list[Row], keys: Sequence[FigureKey], plot: ByRow
) -> list[tuple[Row, Measured, Measured | None]]:
    """(row, its figure, its second metric) of all rows with the figure."""
    measured = []
    for row in rows:
        key = next((key for key in keys if key in row.figures), None)
        if key is not None:
            other = None if plot.beside is None else (key[0], key[1], plot.beside[0])
            measured.append((row, row.figures[key], row.figures.get(other) if other else None))
    return measured
