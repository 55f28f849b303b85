"""A Table as rich text, Markdown and CSV (full precision); harness.report.latex has LaTeX."""

from __future__ import annotations

import csv
import io
import re
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
    suffix = {"stderr": "stderr", "low": "p10", "high": "p90", "spread": "sd_seeds"}
    extras = {
        index: [
            name
            for name in suffix
            if any(getattr(row[index], name) is not None for row in table.rows)
        ]
        for index in range(len(table.columns))
    }
    noted = any(cell.marks for row in table.rows for cell in row)
    header: list[str] = []
    for index, column in enumerate(table.columns):
        header += [column.name, *(f"{column.name}_{suffix[name]}" for name in extras[index])]
    header += ["footnotes"] * noted
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        line: list[str] = []
        for index, cell in enumerate(row):
            line.append(_exact(cell.value))
            line += [_exact(getattr(cell, name)) for name in extras[index]]
        if noted:
            marks = sorted({mark for cell in row for mark in cell.marks})
            line.append(" | ".join(table.footnotes[mark - 1] for mark in marks))
        writer.writerow(line)
    return buffer.getvalue()


def _exact(value: float | str | None) -> str:
    return "" if value is None else (repr(value) if isinstance(value, float) else value)
