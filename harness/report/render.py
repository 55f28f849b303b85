"""A Table as rich text, Markdown and CSV (full precision); harness.report.latex has LaTeX."""

from __future__ import annotations

import csv
import io
import re
from operator import attrgetter
from typing import TYPE_CHECKING

from harness.report.screen_panel import Panel, ScreenColumn
from harness.report.table import Cell, Column, Table, fit_columns, on_screen
from harness.streams import shown

if TYPE_CHECKING:
    from rich.console import Group

SCREEN_WIDTH = 100
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def superscript(marks: tuple[int, ...]) -> str:
    return "⁺".join(str(mark).translate(_SUPERSCRIPTS) for mark in marks)


def all_notes(table: Table) -> list[str]:
    """Notes, then footnotes with their marks."""
    marked = [f"{superscript((i,))} {text}" for i, text in enumerate(table.footnotes, 1)]
    return [*(note.text for note in table.notes), *marked]


def to_rich(table: Table, width: int = SCREEN_WIDTH, causes: bool = True) -> Group:
    """Panels of at most `width` characters; a wider table is split by columns.

    causes  show footnotes with the causes of failures.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    table = on_screen(table, causes)
    columns = [_screen_column(table, index) for index in range(len(table.columns))]
    panels = fit_columns(table.columns, [each.width + 2 for each in columns], width)
    parts = []
    for panel in panels:
        # As a title of the panel, it would be wrapped to the width of a narrow one.
        title = Text(shown(table.title), style="bold")
        parts.append(Group(title, Panel([columns[index] for index in panel])))
    notes = [Padding(Text(shown(note), style="dim"), (0, 1)) for note in all_notes(table)]
    return Group(*parts, *notes)


def _screen_column(table: Table, index: int) -> ScreenColumn:
    column = table.columns[index]
    head = tuple(shown(line) for line in _header_lines(column))
    cells = [row[index] for row in table.rows]
    texts = [shown(each.text + superscript(each.marks)) for each in cells]
    styles = ["bold" if each.best else "red" * (each.text == "failed") for each in cells]
    return ScreenColumn(head, texts, styles, column.numeric)


def _header_lines(column: Column) -> list[str]:
    return [column.header, *([column.detail] if column.detail else [])]


def to_markdown(table: Table) -> str:
    """A GitHub table under its title, then the notes."""
    lines = [
        "| " + " | ".join(_markdown(" ".join(_header_lines(c))) for c in table.columns) + " |",
        "|" + "|".join(" ---: " if c.numeric else " :--- " for c in table.columns) + "|",
    ]
    for row in table.rows:
        lines.append("| " + " | ".join(_markdown_cell(cell) for cell in row) + " |")
    notes = [f"- {_markdown(note)}" for note in all_notes(table)]
    return "\n".join([f"### {_markdown(table.title)}", "", *lines, "", *notes]).rstrip() + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = _markdown(cell.text)
    return (f"**{text}**" if cell.best else text) + superscript(cell.marks)


def _markdown(text: str) -> str:
    text = " ".join(text.split()).replace("](", "]\\(")
    return re.sub(r"([|*<`]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def to_csv(table: Table) -> str:
    """CSV with all digits of figures, and columns for standard errors, percentiles and seeds."""
    table = table.csv or table
    header: list[str] = []
    columns: list[list[float | str | None]] = []
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        for name, ending in _OF_A_CELL.items():
            values = list(map(attrgetter(name), cells))
            if name == "value" or any(each is not None for each in values):
                header.append(column.name + ending)
                columns.append(values)
    marks = [sorted({mark for cell in row for mark in cell.marks}) for row in table.rows]
    if any(marks):
        header.append("footnotes")
        columns.append([" | ".join(table.footnotes[mark - 1] for mark in each) for each in marks])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")  # floats with all digits, None as nothing
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    return buffer.getvalue()


# What the CSV has of a cell, and how the names of those columns end.
_OF_A_CELL = {
    "value": "",
    "stderr": "_stderr",
    "low": "_p10",
    "high": "_p90",
    "spread": "_sd_seeds",
}
