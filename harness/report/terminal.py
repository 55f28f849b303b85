"""What a terminal shows of tables that have more rows than a person reads there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.report.across import across_models
from harness.report.assemble import OfModel
from harness.report.leading import Leading
from harness.report.names import calibrations
from harness.report.table import Note, Table

MOST = 24  # rows of a table
MOST_IN_ALL = 6 * MOST  # rows of the tables of several models
NAMES = ("method", "scheme", "calibration")  # columns that name a row, where a table has them
_Names = tuple[float | str | None, ...]


def for_terminal(
    tables: Sequence[Table], models: Sequence[OfModel], notes: Sequence[str] = ()
) -> list[Table]:
    """The tables, those of more than MOST rows with MOST of them and a note that says so.

    Full precision comes first, then the best of a bit width, then what is on the most Pareto
    fronts; the order is that of the table. Tables of several models that have more than
    MOST_IN_ALL rows even so are replaced by a few across models.

    notes  sentences on the rows, which the first table has.
    """
    if len(models) > 1 and sum(min(MOST, len(each.rows)) for each in tables) > MOST_IN_ALL:
        across = across_models(models, MOST, notes)
        if across:
            return across
    long = {table.model for table in tables if len(table.rows) > MOST}
    places = {each.name: _places(each) for each in models if each.name in long}
    return [
        _shortened(each, places.get(each.model, {})) if len(each.rows) > MOST else each
        for each in tables
    ]


def _places(model: OfModel) -> dict[_Names, int]:
    """The names of the rows that lead: 0 for full precision, 1 for others."""
    first = Leading(model.rows, model.declared).ranked[:MOST]
    several = len(calibrations(model.rows)) > 1
    found: dict[_Names, int] = {}
    for row in first:
        calibration = (row.calibration or "",) if several else ()
        found[row.label, row.scheme_label, *calibration] = int(not row.full_precision)
    return found


def _shortened(table: Table, places: Mapping[_Names, int]) -> Table:
    columns = [index for index, each in enumerate(table.columns) if each.name in NAMES]
    names = [tuple(row[index].value for index in columns) for row in table.rows]

    def place(index: int) -> tuple[bool, bool, bool]:
        found = places.get(names[index])
        return found != 0, not any(cell.best for cell in table.rows[index]), found is None

    chosen, said = list(range(MOST)), f"The first {MOST} of {len(table.rows)} rows."
    if any(each in places for each in names):
        chosen = sorted(sorted(range(len(table.rows)), key=place)[:MOST])
        said = (
            f"{MOST} of {len(table.rows)} rows: the best of each bit width, then those on the "
            "most Pareto fronts."
        )
    notes = [Note(f"{said} All are in summary.md."), *table.notes]
    return replace(table, rows=[table.rows[index] for index in chosen], notes=notes)
