"""What a terminal shows of tables that have more rows than a person reads there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.report.assemble import OfModel
from harness.report.leading import ranked
from harness.report.table import Cell, Note, Table

MOST = 24  # rows of a table
_Names = tuple[float | str | None, ...]  # method and scheme: the first columns of a table of rows


def for_terminal(tables: Sequence[Table], models: Sequence[OfModel]) -> list[Table]:
    """The tables, those of more than MOST rows with MOST of them and a note that says so.

    Full precision comes first, then the best of a bit width, then what is on the most Pareto
    fronts; the order is that of the table.
    """
    long = {table.model for table in tables if len(table.rows) > MOST}
    places = {each.name: _places(each) for each in models if each.name in long}
    return [
        _shortened(each, places.get(each.model, {})) if len(each.rows) > MOST else each
        for each in tables
    ]


def _places(model: OfModel) -> dict[_Names, int]:
    """The names of the rows that lead: 0 for full precision, 1 for others."""
    first = ranked(model.rows, model.declared)[:MOST]
    return {(row.label, row.scheme_label): int(not row.full_precision) for row in first}


def _shortened(table: Table, places: Mapping[_Names, int]) -> Table:
    def place(index: int) -> tuple[bool, bool, bool]:
        row = table.rows[index]
        found = places.get(_names(row))
        return found != 0, not any(cell.best for cell in row), found is None

    chosen = sorted(sorted(range(len(table.rows)), key=place)[:MOST])
    said = (
        f"{MOST} of {len(table.rows)} rows: the best of each bit width, then those on the most "
        "Pareto fronts. All are in summary.md."
    )
    if not any(_names(row) in places for row in table.rows):
        said = f"The first {MOST} of {len(table.rows)} rows. All are in summary.md."
    notes = [Note(said), *table.notes]
    return replace(table, rows=[table.rows[index] for index in chosen], notes=notes)


def _names(row: Sequence[Cell]) -> _Names:
    return tuple(cell.value for cell in row[:2])
