"""Which plots the columns of tables have: against bits per weight, or with a line a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.report.assemble import columns_in_order
from harness.report.columns import AgainstBits, ByRow
from harness.report.leading import MOST_METHODS, MOST_ROWS, Leading, some_of
from harness.report.plots import Plot, against_bits, bits_figure, most_told_apart
from harness.report.row_plot import by_row_figure, measured_rows
from harness.report.rows import FigureKey, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plots_of_columns(leading: Leading) -> list[Plot]:
    """All plots of the columns for which the rows of one model have figures."""
    rows, wanted = leading.rows, dict[AgainstBits | ByRow, dict[FigureKey, str]]()
    for each in columns_in_order(rows, leading.declared):
        if each.declared.plot is not None:
            wanted.setdefault(each.declared.plot, {})[each.key] = each.declared.named
    plots = []
    for plot, names in wanted.items():
        if isinstance(plot, ByRow):
            measured = [row for row, *_ in measured_rows(rows, list(names), plot)]
            make = partial(_leading_rows_figure, leading, list(names), plot, measured)
            known = bool(measured)
        else:
            names = {key: name for key, name in names.items() if against_bits(rows, key)}
            make = partial(_leading_methods_figure, leading, names, plot)
            known = bool(names)
        if known:
            plots.append(Plot(plot.name, plot.title, make))
    return plots


def _leading_rows_figure(
    leading: Leading,
    keys: Sequence[FigureKey],
    plot: ByRow,
    measured: list[Row],
) -> Figure:
    shown = leading.rows_of(measured, MOST_ROWS)
    return by_row_figure(shown, keys, plot, some_of(len(shown), len(measured), "rows"))


def _leading_methods_figure(
    leading: Leading,
    names: Mapping[FigureKey, str],
    plot: AgainstBits,
) -> Figure:
    some = leading.methods(min(MOST_METHODS, most_told_apart(leading.rows)))
    return bits_figure(some, names, plot, leading.rows)
