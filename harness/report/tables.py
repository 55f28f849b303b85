"""The summary tables of a set of records: what bits cost in accuracy, and in time and memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.records.record import Record
from harness.report.cost import cost_table
from harness.report.divergence import divergence_table
from harness.report.frame import from_records
from harness.report.kernels import kernels_table
from harness.report.published import published_table
from harness.report.quality import quality_table
from harness.report.render import SCREEN_WIDTH, to_csv, to_latex, to_markdown, to_rich
from harness.report.rows import read_rows
from harness.report.table import Table

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

__all__ = ["summary_table", "summary_tables", "to_csv", "to_latex", "to_markdown", "to_rich"]


def summary_tables(frame: pd.DataFrame) -> list[Table]:
    """The tables of every model (accuracy, divergence, cost, kernels, published beside ours),
    without those that have no figures.

    frame  what harness.report.frame.from_records gives.
    """
    selection = read_rows(frame)
    tables = []
    for model in sorted({row.model for row in selection.rows}):
        rows = [row for row in selection.rows if row.model == model]
        made = (
            quality_table(model, rows, selection.notes),
            divergence_table(model, rows),
            cost_table(model, rows),
            kernels_table(model, rows),
            published_table(model, rows),
        )
        tables += [table for table in made if table is not None]
    return tables


def summary_table(
    records: Iterable[Record], width: int = SCREEN_WIDTH, causes: bool = True
) -> Group:
    """What a run prints at its end: the tables as a rich renderable at most `width` wide.

    causes  whether the tables say why something failed; a run says it once, below them.
    """
    from rich.console import Group

    tables = summary_tables(from_records(records))
    if not tables:
        return Group("No records, so no table.")
    return Group(*(to_rich(table, width, causes) for table in tables))
