"""A Table as rich text, Markdown, CSV (full precision) and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

from harness.report.table import Cell, Column, Table, on_screen
from harness.streams import shown

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

SCREEN_WIDTH = 100
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "—": "---",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "Δ": r"$\Delta$",
    "≥": r"$\geq$",
    "α": r"$\alpha$",
}


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
    parts = [_rich_panel(table, columns) for columns in _fit(table, width)]
    notes = [Padding(Text(shown(note), style="dim"), (0, 1)) for note in all_notes(table)]
    return Group(*parts, *notes)


def _rich_panel(table: Table, columns: list[int]) -> Group:
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    panel = RichTable(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for index in columns:
        column = table.columns[index]
        header = Text(shown("\n".join(_header_lines(column))))
        panel.add_column(header, justify="right" if column.numeric else "left", no_wrap=True)
    for row in table.rows:
        panel.add_row(*(_rich_cell(row[index]) for index in columns))
    # As a title of the panel, it would be wrapped to the width of a narrow one.
    return Group(Text(shown(table.title), style="bold"), panel)


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    style = "bold" if cell.best else ("red" if cell.text == "failed" else "")
    return Text(_screen_text(cell), style=style)


def _screen_text(cell: Cell) -> str:
    return shown(cell.text + superscript(cell.marks))


def _header_lines(column: Column) -> list[str]:
    return [column.header, *([column.detail] if column.detail else [])]


def _fit(table: Table, width: int) -> list[list[int]]:
    """Indices of the columns of each panel: the names, and as many others as fit."""
    widths = [_width(table, index) + 2 for index in range(len(table.columns))]
    numbered = list(enumerate(table.columns))
    names = [i for i, column in numbered if not column.numeric]
    figures = [i for i, _ in numbered if i not in names]
    room = width - sum(widths[i] for i in names)
    panels: list[list[int]] = [[]]
    used = 0
    for index in figures:
        if panels[-1] and used + widths[index] > room:
            panels.append([])
            used = 0
        panels[-1].append(index)
        used += widths[index]
    return [names + panel for panel in panels]


def _width(table: Table, index: int) -> int:
    bodies = [len(_screen_text(row[index])) for row in table.rows]
    return max([len(shown(line)) for line in _header_lines(table.columns[index])] + bodies)


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


def to_latex(table: Table) -> str:
    """A LaTeX table for \\usepackage{booktabs}, with all text escaped."""
    layout = "".join("r" if column.numeric else "l" for column in table.columns)
    top = " & ".join(_latex(column.header) for column in table.columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{_latex(table.title)}}}",
        f"  \\label{{tab:{table.name}}}",
        f"  \\begin{{tabular}}{{{layout}}}",
        "    \\toprule",
        f"    {top} \\\\",
    ]
    if any(column.detail for column in table.columns):
        lines.append("    " + " & ".join(_latex(c.detail) for c in table.columns) + " \\\\")
    lines.append("    \\midrule")
    for row in table.rows:
        lines.append("    " + " & ".join(_latex_cell(cell) for cell in row) + " \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}"]
    notes = [_latex(note.text) for note in table.notes]
    notes += [f"$^{{{i}}}$ {_latex(text)}" for i, text in enumerate(table.footnotes, 1)]
    if notes:
        lines += ["", "  \\smallskip", "  \\begin{minipage}{\\linewidth}\\footnotesize"]
        lines += [f"    {note}\\par" for note in notes]
        lines.append("  \\end{minipage}")
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    # Bold for math too, because "20.39 ± 0.32" is partly math.
    text = f"\\textbf{{\\boldmath {_latex(cell.text)}}}" if cell.best else _latex(cell.text)
    marks = ",".join(str(mark) for mark in cell.marks)
    return text + (f"$^{{{marks}}}$" if marks else "")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
