"""What the page shows of every cell: names, figures of tables, failures, curves. Plain values.

A cell has a line of its own here, also where tables combine seeds. Nothing depends on a certain
suite, metric or method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.records.record import NOT_AVAILABLE
from harness.report.assemble import OfModel
from harness.report.columns import AgainstBits, Shown
from harness.report.curves import Point, curve_name, curves_of
from harness.report.pareto import context_of, serving_in
from harness.report.plots import colour_order, kind_name, kind_of
from harness.report.rows import FigureKey, Row
from harness.report.serving import Serving
from harness.report.table import Cell, Table
from harness.suites.base import Suite
from harness.suites.find import declared_tables


class Texts:
    """Numbers texts in the order of their first use, so that the page holds each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))


class Gathered:
    """Columns and groups of them, figures by cell, and the footnotes of figures."""

    def __init__(self) -> None:
        self.columns: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, FigureKey] = {}
        self.figures: dict[str, dict[str, list[Any]]] = {}
        self.said = Texts()

    def add(
        self, table: Table, shown: Sequence[Shown | None], rows: Sequence[Row], compared: set[str]
    ) -> None:
        group = self.groups.setdefault(table.name, {"name": _group_name(table), "notes": {}})
        for note in table.notes:
            group["notes"].setdefault(note.text, []).append(table.model)
        for index, each in enumerate(shown):
            if each is None:
                continue
            name = f"{table.name}/{each.column.name}"
            if name not in self.columns:
                self.columns[name] = _column(table.name, each, rows, compared)
                self.keys[name] = each.key
            for row, cells in zip(rows, table.rows, strict=True):
                found = self._figure(cells[index], table)
                if found is not None:
                    self.figures.setdefault(row.cells[0], {})[name] = found

    def _figure(self, cell: Cell, table: Table) -> list[Any] | None:
        """[text, value, standard error, is the best, numbers of footnotes]; None for no figure."""
        if cell == Cell():
            return None
        marks = [self.said.number(table.footnotes[mark - 1]) for mark in cell.marks]
        value = cell.value if isinstance(cell.value, float) else None
        return [cell.text, value, cell.stderr, int(cell.best), marks]


def gather(models: Sequence[OfModel]) -> tuple[Gathered, list[dict[str, Any]]]:
    """The columns of all tables with a line a row, and the entries of all cells, in order.

    models  with rows of one cell each.
    """
    gathered = Gathered()
    servings: dict[str, Serving | None] = {}
    for model in models:
        servings |= {row.cells[0]: serving_in(model.declared, row) for row in model.rows}
        compared = {name for name, table in model.declared.items() if table.compared}
        for each in model.joined:
            gathered.add(each.table, each.shown, model.rows, compared)
    rows = [row for model in models for row in model.rows]
    names = list(gathered.columns)
    colours = colour_order(rows)
    return gathered, [
        _cell(row, gathered, names, colours) | _serving(servings[row.cells[0]]) for row in rows
    ]


def _serving(found: Serving | None) -> dict[str, Any]:
    """What serving takes, which the page adds up for any context; nothing where it is unknown."""
    if found is None:
        return {}
    return {
        "serving": {
            "bits": found.bits_per_weight,
            "weights": found.weights,
            "workspace": found.workspace,
            "state": found.state,
            "cache": [list(each) for each in found.cache],
            "positions": found.positions,
            "said": found.said,
        },
        "context": context_of([found]),
    }


def _cell(
    row: Row, gathered: Gathered, names: Sequence[str], colours: Sequence[str]
) -> dict[str, Any]:
    """A cell as the page knows it; figures stand in the order of the columns."""
    failures = [[suite, cause] for suite, cause in sorted(row.failures.items())]
    absent = all(cause.startswith(f"{NOT_AVAILABLE}: ") for _, cause in failures)
    figures = gathered.figures.get(row.cells[0], {})
    said = [*row.coverage, *row.transforms, *(f"fallback in {text}" for text in row.fallbacks)]
    return {
        "key": row.cells[0],
        "model": row.model,
        "method": row.label,
        "scheme": row.scheme_label,
        "calibration": row.calibration or "",
        "seed": row.seeds[0],
        "bits": row.bits_per_weight,
        "width": row.bits,
        "full": row.full_precision,
        "kind": "" if row.full_precision else kind_name(kind_of(row)),
        "colour": -1 if row.full_precision else colours.index(row.name),
        "status": "ok" if not failures else NOT_AVAILABLE if absent else "failed",
        "failures": failures,
        "said": [*said, *row.mixture, *row.head],
        "figures": [figures.get(name) for name in names],
    }


def _group_name(table: Table) -> str:
    """The title of a table without its model."""
    name = table.title.replace(f" of {table.model}", "").replace(table.model, "").strip()
    return name or table.name.replace("_", " ").capitalize()


def _column(group: str, shown: Shown, rows: Sequence[Row], compared: set[str]) -> dict[str, Any]:
    figures = [row.figures[shown.key] for row in rows if shown.key in row.figures]
    column = shown.column
    return {
        "group": group,
        "header": column.header,
        "detail": column.detail,
        "unit": figures[0].unit if figures else "",
        "higher": bool(figures and figures[0].higher_is_better),
        "screen": column.on_screen,
        "compared": shown.key[0] in compared,
        "quality": shown.declared.quality,
        "log": isinstance(shown.declared.plot, AgainstBits) and shown.declared.plot.logarithmic,
    }


def curves(rows: Sequence[Row], suites: Mapping[str, Suite]) -> list[dict[str, Any]]:
    """Figures against positions, a curve for each cell; empty where no figure has a position."""
    found: dict[FigureKey, dict[str, list[Point]]] = {}
    for index, row in enumerate(rows):
        for key, points in curves_of(row).items():
            found.setdefault(key, {})[str(index)] = points
    declared = declared_tables(rows, suites)
    return [
        {
            "name": curve_name(key, declared),
            "unit": next(iter(lines.values()))[0].unit,
            "cells": {
                index: [[each.position, each.value, each.stderr] for each in points]
                for index, points in lines.items()
            },
        }
        for key, lines in sorted(found.items())
    ]
