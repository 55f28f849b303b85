"""Assemble tables from the columns that suites declare, after the columns of cell names.

Nothing here depends on a certain suite or metric; harness.report.columns has the declarations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness.report.columns import FigureColumn, Place, Shown, SuiteTable
from harness.report.compare import Sample, best_figures, compared_notes, other_sample, usual_sample
from harness.report.differences import Differences, difference_table, find_differences
from harness.report.names import (
    Footnotes,
    busy_footnote,
    failed_seeds,
    missing,
    name_cells,
    name_columns,
)
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Column, Note, Table
from harness.report.texts import BESIDE_TEXTS, text_table


@dataclass(frozen=True)
class Joined:
    """A table that suites share.

    shown        what its columns show; None for names and suites without any figure.
    compared     its figures that are compared with full precision, and what was found.
    """

    place: Place
    table: Table
    shown: list[Shown | None]
    compared: list[Shown]
    differences: Differences
    texts: Table | None


@dataclass(frozen=True)
class OfModel:
    """The rows of one model, and the tables that their suites declare."""

    name: str
    rows: list[Row]
    declared: Mapping[str, SuiteTable]

    @cached_property
    def joined(self) -> list[Joined]:
        """The tables with a line a row, in order; files and page have the same of the same rows."""
        places = sorted(_places(self.declared), key=lambda each: (each[0].rank, each[0].name))
        keys = _figure_keys(self.rows)
        found = (_joined(place, self.name, self.rows, suites, keys) for place, suites in places)
        return [each for each in found if each]


def tables_of_model(model: OfModel, notes: Sequence[str] = ()) -> list[Table]:
    """The tables of one model's rows in order, without those that have no figure and no failure.

    notes  sentences about the rows, for the first table.
    """
    made: list[tuple[Place, Table]] = []
    for each in model.joined:
        place, rows = each.place, model.rows
        differing = difference_table(place, model.name, rows, each.compared, each.differences)
        made += [(place, table) for table in (each.table, differing, each.texts) if table]
    for declared in model.declared.values():
        for own in declared.tables:
            whole = own.make(model.name, model.rows)
            made += [] if whole is None else [(own.place, whole)]
    tables = [table for _, table in sorted(made, key=lambda each: (each[0].rank, each[0].name))]
    if tables and notes:
        said = [*tables[0].notes, *(Note(text) for text in notes)]
        tables[0] = replace(tables[0], notes=said)
    return tables


def columns_in_order(rows: Sequence[Row], declared: Mapping[str, SuiteTable]) -> list[Shown]:
    """All columns of one model's rows, in the order of their tables."""
    keys = _figure_keys(rows)
    return [
        shown
        for _, suites in sorted(_places(declared), key=lambda each: (each[0].rank, each[0].name))
        for name, table in suites.items()
        for shown in _shown_columns(name, table, rows, keys.get(name, set()))
    ]


def _shown_columns(
    suite: str, table: SuiteTable, rows: Sequence[Row], found: set[FigureKey]
) -> list[Shown]:
    """The columns of one suite that have something to show, in order.

    found  the keys of its figures.
    """
    pairs = _pairs(suite, table, rows, found)
    count = {id(declared): 0 for declared, _ in pairs}
    for declared, _ in pairs:
        count[id(declared)] += 1
    return [
        Shown(key, declared, _column(declared, key, rows, count[id(declared)] > 1))
        for declared, key in pairs
    ]


def _places(declared: Mapping[str, SuiteTable]) -> list[tuple[Place, dict[str, SuiteTable]]]:
    """All tables, each with its suites in order."""
    found: dict[str, tuple[Place, dict[str, SuiteTable]]] = {}
    for name, whole in sorted(declared.items(), key=lambda each: (each[1].rank, each[0])):
        for table in (whole, *whole.further):
            if table.columns or table.others:
                place = table.joins or Place(
                    name, f"{name.replace('_', ' ').capitalize()} of {{model}}"
                )
                found.setdefault(place.name, (place, {}))[1][name] = table
    return list(found.values())


def _joined(
    place: Place,
    model: str,
    rows: list[Row],
    suites: Mapping[str, SuiteTable],
    keys: Mapping[str, set[FigureKey]],
) -> Joined | None:
    """The tables of a place; None without a figure or a failure. keys: `_figure_keys` of rows."""
    shown = _distinct(
        {
            name: _shown_columns(name, table, rows, keys.get(name, set()))
            for name, table in suites.items()
        }
    )
    failed = [
        name
        for name, table in suites.items()
        if table.fails and not shown[name] and any(name in row.failures for row in rows)
    ]
    if not failed and not any(shown.values()):
        return None
    every = [each for columns in shown.values() for each in columns]
    compared = [each for name in suites if suites[name].compared for each in shown[name]]
    best = best_figures(rows, compared)
    differences = find_differences(rows, [each.key for each in compared])
    footnotes, cells = Footnotes(), []
    busy = {name: busy_footnote(name, rows) for name in suites}
    usual = {each.key: usual_sample(rows, each.key) for each in compared}
    for index, row in enumerate(rows):
        line = name_cells(row, rows, footnotes)
        for each in every:
            suite = each.key[0]
            said = differences.footnotes(index, each.key)
            cell = _cell(row, each, rows, footnotes, usual.get(each.key), busy[suite], said)
            line.append(replace(cell, best=True) if (index, each.key) in best else cell)
        line += [missing(row, name, footnotes) for name in failed]
        cells.append(line)
    names = name_columns(rows)
    columns = [
        *names,
        *(each.column for each in every),
        *(Column(f"{name}:status", name) for name in failed),
    ]
    notes = []
    if any(suites[name].compared for name in suites):
        notes += compared_notes(rows, compared, best, usual) + differences.notes()
    for name, table in suites.items():
        notes += table.notes(rows, shown[name]) if shown[name] else []
    title = place.title.replace("{model}", model)
    texts, causes = footnotes.texts, footnotes.causes
    beside = text_table(place, model, rows, compared)
    notes += [] if beside is None else [BESIDE_TEXTS]
    joined = Table(place.name, model, title, columns, cells, notes, texts, causes)
    columns_show = [*[None] * len(names), *every, *[None] * len(failed)]
    return Joined(place, joined, columns_show, compared, differences, beside)


def _pairs(
    suite: str, table: SuiteTable, rows: Sequence[Row], found: set[FigureKey]
) -> list[tuple[FigureColumn, FigureKey]]:
    """Declared columns with the keys of their figures."""
    if not found and not (table.every_column and any(suite in row.failures for row in rows)):
        return []
    tasks = sorted({task for _, task, _ in found}) or [suite]
    pairs = [
        (declared, (suite, task, declared.metric))
        for declared in table.columns
        for task in (tasks if declared.task is None else [declared.task])
        if (table.every_column and not declared.optional) or (suite, task, declared.metric) in found
    ]
    if table.others is not None:
        served = {key[1] for _, key in pairs}
        rest = sorted(key for key in found if key[1] not in served)
        others = {metric: replace(table.others, metric=metric) for _, _, metric in rest}
        pairs += [(others[key[2]], key) for key in rest]
    if table.task_by_task:
        pairs.sort(key=lambda pair: pair[1][1])  # stable: columns stay in their order
    return pairs


def _figure_keys(rows: Sequence[Row]) -> dict[str, set[FigureKey]]:
    """The keys of all figures by suite."""
    found: dict[str, set[FigureKey]] = {}
    for key in {key for row in rows for key in row.figures}:
        found.setdefault(key[0], set()).add(key)
    return found


def _column(declared: FigureColumn, key: FigureKey, rows: Sequence[Row], several: bool) -> Column:
    """The column's header and name, which include the task if there are several."""
    _, task, metric = key
    name, shown = declared.name or metric, declared.on_screen
    if not declared.header:
        figures = [row.figures[key] for row in rows if key in row.figures]
        direction = f" {_direction(figures[0])}" if figures else ""
        detail = f"{declared.detail or metric}{direction}"
        return Column(f"{task}:{name}", task, detail, on_screen=shown)
    if several:
        detail = f"{declared.header} {declared.detail}".strip()
        return Column(f"{task}:{name}", task, detail, on_screen=shown)
    return Column(name, declared.header, declared.detail, on_screen=shown)


def _direction(figure: Figure) -> str:
    """Unit and direction, such as "% ↑" for a fraction where more is better."""
    return "% " * (figure.unit == "fraction") + ("↑" if figure.higher_is_better else "↓")


def _distinct(shown: Mapping[str, list[Shown]]) -> dict[str, list[Shown]]:
    """Add the suite to the names of columns that repeat an earlier name."""
    names: set[str] = set()
    found: dict[str, list[Shown]] = {suite: [] for suite in shown}
    for suite, columns in shown.items():
        for each in columns:
            column = each.column
            if column.name in names:
                column = replace(column, name=f"{suite}:{column.name}")
            names.add(column.name)
            found[suite].append(replace(each, column=column))
    return found


def _cell(
    row: Row,
    shown: Shown,
    rows: Sequence[Row],
    footnotes: Footnotes,
    usual: Sample | None,
    busy: str,
    said: Sequence[str],
) -> Cell:
    """usual: the sample of most of the column, where figures of different rows are compared."""
    figure = row.figures.get(shown.key)
    if figure is None:
        why = shown.declared.absent(row, shown.key)
        if why is None:
            return missing(row, shown.key[0], footnotes)
        return Cell(marks=(footnotes.mark(why),)) if why else Cell()
    marks = failed_seeds(row, shown.key[0], footnotes)
    texts = [] if usual is None else other_sample(figure, usual)
    texts += shown.declared.footnotes(row, shown.key, rows)
    texts += [*([busy] if figure.busy else []), *said]
    marks += tuple(footnotes.mark(text) for text in texts)
    written = shown.declared.write(figure)
    return written if written.marks == marks else replace(written, marks=marks)
