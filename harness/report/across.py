"""Tables across models: a row for every method and scheme, a column for every model.

A terminal shows these where the tables of each model would be more than a person reads there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from harness.report.assemble import OfModel
from harness.report.columns import Shown
from harness.report.pareto import quality_columns
from harness.report.rows import FigureKey, Row, in_order
from harness.report.table import NARROW_NO_VALUE, Cell, Column, Note, Table

NAME = "across_models"
MOST_TABLES = 3  # one figure of each unit

_Names = tuple[str, str]  # of a row, in every model


@dataclass(frozen=True)
class _Figure:
    """One figure of all models: its title, and its cells by model and names of the row."""

    title: str
    cells: dict[str, dict[_Names, Cell]]


def across_models(models: Sequence[OfModel], most: int, notes: Sequence[str]) -> list[Table]:
    """The first figure of each unit that says how good a row is, without standard errors.

    most   rows and columns of a table: the best of each bit width, and the first models.
    notes  sentences on the rows, for the first table.

    Empty where no model has such a figure.
    """
    shown = models[:most]
    rows = sorted((row for each in shown for row in each.rows), key=in_order)
    several = {row.label for row in rows if row.told_by}
    figures = [_figure(key, shown, several) for key in _keys(shown)]
    names = list(dict.fromkeys(_names(row, several) for row in rows))
    chosen = _chosen(names, figures, most)
    tables = [_table(each, chosen, shown) for each in figures]
    if tables:
        said = [*notes, *_left_out(len(chosen), len(names), "rows: the best of each bit width")]
        said += _left_out(len(shown), len(models), "models")
        failed = sum(bool(row.failures) for each in models for row in each.rows)
        said += [f"Rows with a failure, of all models: {failed}."] if failed else []
        tables[0] = replace(tables[0], notes=[*map(Note, said), *tables[0].notes])
        bold = any(cell.best for table in tables for row in table.rows for cell in row)
        best = "Bold: best of its bit width. " * bold
        tables[-1].notes.append(
            Note(
                f"{best}The tables of each model, with standard errors, tests, all figures and "
                "causes of failures, are in summary.md and tables/."
            )
        )
    return tables


def _keys(models: Sequence[OfModel]) -> list[FigureKey]:
    """The first figure of each unit, of all models."""
    units: dict[str, FigureKey] = {}
    for model in models:
        for each in quality_columns(model.rows, model.declared):
            unit = next(row.figures[each.key].unit for row in model.rows if each.key in row.figures)
            units.setdefault(unit, each.key)
    return list(units.values())[:MOST_TABLES]


def _figure(key: FigureKey, models: Sequence[OfModel], several: Set[str]) -> _Figure:
    title, cells = "", {}
    for model in models:
        for joined in model.joined:
            places = [at for at, each in enumerate(joined.shown) if each and each.key == key]
            for at in places[:1]:
                title = title or _title(joined.shown[at])
                lines = zip(model.rows, joined.table.rows, strict=True)
                cells[model.name] = {_names(row, several): _plain(line[at]) for row, line in lines}
    return _Figure(title, cells)


def _title(shown: Shown | None) -> str:
    assert shown is not None
    column = shown.column
    return " ".join(filter(None, (column.header, column.detail)))


def _names(row: Row, several: Set[str]) -> _Names:
    """Method and scheme; full precision is one row, whatever the dtype of a model's weights.

    several  labels that have several calibrations in a model: their rows are told apart by the
             calibration in every model, so that the same calibration is one row.
    """
    name = f"{row.label} {row.calibration or ''}".strip() if row.label in several else row.name
    return name, "" if row.full_precision else row.scheme


def _plain(cell: Cell) -> Cell:
    """The figure alone: without its error, range, deviation and footnotes."""
    text = re.split(r" [±\[(]", cell.text, maxsplit=1)[0]
    return replace(cell, text=text, marks=())


def _chosen(names: list[_Names], figures: Sequence[_Figure], most: int) -> list[_Names]:
    """At most `most` rows in their order: full precision, then those that are best most often."""
    best = dict.fromkeys(names, 0)
    for cells in (cells for figure in figures for cells in figure.cells.values()):
        for each, cell in cells.items():
            best[each] += cell.best
    first = set(sorted(names, key=lambda each: (each[1] != "", -best[each]))[:most])
    return [each for each in names if each in first]


def _table(figure: _Figure, names: Sequence[_Names], models: Sequence[OfModel]) -> Table:
    having = [each.name for each in models if each.name in figure.cells]
    columns = [
        Column("method", "method", numeric=False),
        Column("scheme", "scheme", numeric=False),
        *(Column(each, each) for each in having),
    ]
    lines = [
        [Cell(method, method), Cell(scheme, scheme)]
        + [figure.cells[model].get((method, scheme), Cell()) for model in having]
        for method, scheme in names
    ]
    lines = [line for line in lines if any(each.text != NARROW_NO_VALUE for each in line[2:])]
    lacking = [each.name for each in models if each.name not in figure.cells]
    notes = [Note(f"Models without this figure: {', '.join(lacking)}.")] if lacking else []
    return Table(NAME, "", f"{figure.title}, by model", columns, lines, notes)


def _left_out(shown: int, every: int, what: str) -> list[str]:
    return [f"{shown} of {every} {what}."] if shown < every else []
