"""The summary tables of records: accuracy, time and memory by scheme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.records.record import Record
from harness.report.assemble import OfModel, tables_of_model
from harness.report.frame import from_records
from harness.report.latex import to_latex
from harness.report.origin import error_table, origin_notes
from harness.report.render import SCREEN_WIDTH, to_csv, to_markdown, to_rich
from harness.report.rows import Row, read_rows
from harness.report.table import Table
from harness.suites.base import Suite
from harness.suites.find import declared_tables

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

__all__ = ["summary_table", "summary_tables", "to_csv", "to_latex", "to_markdown", "to_rich"]

NO_SPECS: Mapping[str, Suite] = {}


def summary_tables(frame: pd.DataFrame, suites: Mapping[str, Suite] = NO_SPECS) -> list[Table]:
    """The tables of every model, each with the columns that its suites declare.

        frame   from harness.report.frame.from_records.
    suites  specs by name, for suites that are not built in.
    """
    every = read_rows(frame)
    return tables_of(models_of(every.rows, suites), every.notes)


def models_of(rows: Sequence[Row], suites: Mapping[str, Suite] = NO_SPECS) -> list[OfModel]:
    """The rows by model, in the order of names."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.model, []).append(row)
    return [
        OfModel(name, found[name], declared_tables(found[name], suites)) for name in sorted(found)
    ]


def tables_of(models: Sequence[OfModel], notes: Sequence[str]) -> list[Table]:
    """The tables of summary_tables, from rows and the notes on them."""
    tables = []
    for each in models:
        made = tables_of_model(each, notes)
        made += filter(None, [error_table(each.name, each.rows)])
        said = origin_notes(each.rows)
        tables += [replace(table, notes=[*table.notes, *said]) for table in made]
    return tables


def summary_table(
    records: Iterable[Record],
    width: int = SCREEN_WIDTH,
    causes: bool = True,
    suites: Mapping[str, Suite] = NO_SPECS,
) -> Group:
    """The tables that a run prints at its end, as a rich renderable of at most `width` characters.

    causes  show causes of failures in the tables; a run prints them once, below the tables.
    suites  specs by name, for suites that are not built in.
    """
    return on_console(summary_tables(from_records(records), suites), width, causes)


def on_console(tables: Sequence[Table], width: int, causes: bool) -> Group:
    """The renderable of summary_table, from tables."""
    from rich.console import Group

    if not tables:
        return Group("No records, so no table.")
    return Group(*(to_rich(table, width, causes) for table in tables))
