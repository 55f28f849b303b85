"""A Table as LaTeX: booktabs, cut or turned to fit a page, with all text escaped.

Widths are estimated from those of Computer Modern at 10 pt, so that files are made without TeX;
tests compile them and let no line be too wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from harness.errors import ConfigError
from harness.report.latex_letters import escaped
from harness.report.table import Cell, Column, Table, fit_columns

ROTATE, SPLIT = "rotate", "split"
# Lengths in points: the text of LaTeX's article class at 10 pt on letter paper.
WIDTH, HEIGHT = 345.0, 550.0
NARROWEST = 200.0  # two columns of text and one of figures
WIDEST_TEXT = 110.0  # a column of text is wrapped beyond it
CAPTION, RULES, SKIP = 30.0, 18.0, 6.0  # what stands around the rows
NOTE_LINE, NOTE_LETTER = 9.5, 4.3  # of a note, in \\footnotesize


@dataclass(frozen=True)
class Style:
    """How a table is set.

    caption, label  LaTeX as it is; None: the table's title, and "tab:" with the table's name.
    width           of a line of the document, in points (what \\the\\textwidth prints).
    wide            of a table too wide: ROTATE turns it if it then fits on a page, SPLIT does not;
                    what does not fit is split by columns, its names repeated.
    """

    caption: str | None = None
    label: str | None = None
    width: float = WIDTH
    wide: str = ROTATE


@dataclass(frozen=True)
class Latex:
    """How the tables of a report are set: captions and labels by the names of their files."""

    captions: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    width: float = WIDTH
    wide: str = ROTATE

    def style(self, name: str) -> Style:
        """The style of tables/NAME.tex."""
        label = self.labels.get(name, f"tab:{name}")
        return Style(self.captions.get(name), label, self.width, self.wide)

    def check(self, names: Sequence[str]) -> None:
        """Raise ConfigError for a caption or label of no table, and for too narrow a text."""
        for kind, given in (("caption", self.captions), ("label", self.labels)):
            for name in given:
                if name not in names:
                    raise ConfigError(
                        f"--{kind} {name}=...: the report has no table {name}; it has "
                        f"{', '.join(names)}."
                    )
        if not NARROWEST <= self.width <= HEIGHT:
            raise ConfigError(
                f"--text-width {self.width:g}: give {NARROWEST:g} to {HEIGHT:g} points, as "
                "\\the\\textwidth prints them."
            )


LATEX = Latex()


@dataclass(frozen=True)
class _Type:
    """A size of type: its command, its width beside 10 pt, points between columns and of a line."""

    command: str
    scale: float
    between: float
    line: float


_USUAL = _Type("", 1.0, 12.0, 12.0)
_SMALL_TYPE = _Type("\\footnotesize\\setlength{\\tabcolsep}{4pt}", 0.86, 8.0, 9.5)


@dataclass(frozen=True)
class _Block:
    """Lines of LaTeX that stay on one page, and their height in points; rows, or notes alone."""

    lines: list[str]
    height: float
    rows: bool


@dataclass(frozen=True)
class _Sized:
    """A table in a type, with the widths of its columns in points."""

    table: Table
    type: _Type
    widths: list[float]

    def height(self, row: Sequence[Cell], panel: Sequence[int]) -> float:
        """The height of a row, whose texts may be wrapped."""
        rooms = [self.widths[index] - self.type.between for index in panel]
        widths = [self.type.scale * _cell_width(row[index]) for index in panel]
        lines = (
            math.ceil(1.1 * width / room) if width > room + 0.1 else 1
            for width, room in zip(widths, rooms, strict=True)
        )
        return self.type.line * max(lines, default=1)


def to_latex(table: Table, style: Style | None = None) -> str:
    """A LaTeX table whose first line names the packages that it needs.

    A table too wide has small type; one still too wide is turned or split. It is a float of one
    page or, where rows or notes need more, several of one number.
    """
    style = style or Style()
    notes = _note_lines(table)
    environment, sized, panels = _layout(table, style, _notes_height(notes, HEIGHT))
    width, height = (style.width, HEIGHT) if environment == "table" else (HEIGHT, style.width)
    height -= CAPTION
    blocks = [block for panel in panels for block in _tabulars(sized, panel, height)]
    blocks += _notes(notes, width, height)
    caption = style.caption or escaped(table.title)
    label = style.label or f"tab:{table.name}"
    floats = [
        _float(environment, page, caption, label, again=number > 0)
        for number, page in enumerate(_pages(blocks, height))
    ]
    body = "\n".join(line for lines in floats for line in lines)
    packages = [name for name, sign in _PACKAGES.items() if sign in body]
    said = [f"% needs \\usepackage{{{','.join(packages)}}}"]
    if "\\Umathchar" in body:
        said.append("% has letters that need lualatex or xelatex; pdflatex prints their numbers")
    return "\n".join([*said, body]) + "\n"


def _layout(table: Table, style: Style, notes: float) -> tuple[str, _Sized, list[list[int]]]:
    """The environment, the table in its type, and the columns of each tabular."""
    every = list(range(len(table.columns)))
    sizes = [_sized(table, type) for type in (_USUAL, _SMALL_TYPE)]
    for sized in sizes:
        if sum(sized.widths) <= style.width:
            return "table", sized, [every]
    for sized in sizes if style.wide == ROTATE else []:
        rows = sum(sized.height(row, every) for row in table.rows)
        tall = CAPTION + RULES + 2 * sized.type.line + rows + SKIP + notes
        if sum(sized.widths) <= HEIGHT and tall <= style.width:
            return "sidewaystable", sized, [every]
    return "table", sizes[-1], fit_columns(table.columns, sizes[-1].widths, style.width)


def _sized(table: Table, type: _Type) -> _Sized:
    widths = []
    for index, column in enumerate(table.columns):
        texts = [_text_width(column.header), _text_width(column.detail)]
        width = type.scale * max([*texts, *(_cell_width(row[index]) for row in table.rows)])
        widths.append(type.between + (width if column.numeric else min(width, WIDEST_TEXT)))
    return _Sized(table, type, widths)


_PACKAGES = {
    "array": r"\arraybackslash",
    "booktabs": r"\toprule",
    "rotating": r"\begin{sidewaystable}",
}


def _float(
    environment: str, blocks: Sequence[_Block], caption: str, label: str, again: bool
) -> list[str]:
    """A float; `again`: not the first, whose number it has. One of notes alone has no caption."""
    lines = [f"\\begin{{{environment}}}", "  \\centering"]
    if not again:
        lines += [f"  \\caption{{{caption}}}", f"  \\label{{{label}}}"]
    elif any(block.rows for block in blocks):
        lines += ["  \\addtocounter{table}{-1}", f"  \\caption{{{caption} (continued)}}"]
    for index, block in enumerate(blocks):
        lines += [*[""] * (index > 0), "  \\smallskip"]
        lines += [f"  {line}" for line in block.lines]
    return [*lines, f"\\end{{{environment}}}"]


def _pages(blocks: Sequence[_Block], height: float) -> list[list[_Block]]:
    """Blocks by page, in order; as many on each as fit."""
    pages: list[list[_Block]] = [[]]
    used = 0.0
    for block in blocks:
        if pages[-1] and used + block.height > height:
            pages.append([])
            used = 0.0
        pages[-1].append(block)
        used += block.height + SKIP
    return pages


def _tabulars(sized: _Sized, panel: Sequence[int], height: float) -> list[_Block]:
    """The tabulars of some columns: one, or several where the rows need more than a page."""
    table, line = sized.table, sized.type.line
    head = _head([table.columns[index] for index in panel])
    around = RULES + line * len(head)
    chunks: list[tuple[list[str], float]] = [([], around)]
    for row in table.rows:
        tall = sized.height(row, panel)
        if chunks[-1][0] and chunks[-1][1] + tall > height:
            chunks.append(([], around))
        lines, used = chunks[-1]
        lines.append(_line([_cell(row[index]) for index in panel]))
        chunks[-1] = (lines, used + tall)
    layout = "".join(_column(sized, index) for index in panel)
    begin = [sized.type.command] * bool(sized.type.command)
    begin += [f"\\begin{{tabular}}{{{layout}}}", "  \\toprule", *head, "  \\midrule"]
    end = ["  \\bottomrule", "\\end{tabular}"]
    return [_Block([*begin, *lines, *end], used, rows=True) for lines, used in chunks]


def _column(sized: _Sized, index: int) -> str:
    if sized.table.columns[index].numeric:
        return "r"
    wrapped = sized.widths[index] >= WIDEST_TEXT + sized.type.between
    return f">{{\\raggedright\\arraybackslash}}p{{{WIDEST_TEXT:g}pt}}" if wrapped else "l"


def _head(columns: Sequence[Column]) -> list[str]:
    lines = [_line([escaped(column.header) for column in columns])]
    if any(column.detail for column in columns):
        lines.append(_line([escaped(column.detail) for column in columns]))
    return lines


def _line(cells: Sequence[str]) -> str:
    text = " & ".join(cells)
    # After \\ or a rule, a bracket or a star would be taken for their option.
    return f"  {'{}' * text.startswith(('[', '*'))}{text} \\\\"


def _cell(cell: Cell) -> str:
    # Bold for math too, because "20.39 ± 0.32" is partly math.
    text = f"\\textbf{{\\boldmath {escaped(cell.text)}}}" if cell.best else escaped(cell.text)
    marks = ",".join(str(mark) for mark in cell.marks)
    return text + (f"$^{{{marks}}}$" if marks else "")


def _note_lines(table: Table) -> list[tuple[str, int]]:
    """Notes and footnotes as LaTeX, each with its number of letters."""
    marked = [(f"$^{{{i}}}$ ", text) for i, text in enumerate(table.footnotes, 1)]
    plain = [("", note.text) for note in table.notes]
    return [(f"{mark}{escaped(text)}\\par", len(text)) for mark, text in [*plain, *marked]]


def _notes(notes: Sequence[tuple[str, int]], width: float, height: float) -> list[_Block]:
    blocks: list[_Block] = []
    for line, letters in notes:
        tall = _note_height(letters, width)
        if not blocks or blocks[-1].height + tall > height:
            begin = "\\begin{minipage}{\\linewidth}\\footnotesize\\raggedright"
            blocks.append(_Block([begin, "\\end{minipage}"], 0.0, rows=False))
        last = blocks[-1]
        lines = [*last.lines[:-1], f"  {line}", last.lines[-1]]
        blocks[-1] = _Block(lines, last.height + tall, rows=False)
    return blocks


def _notes_height(notes: Sequence[tuple[str, int]], width: float) -> float:
    return sum(_note_height(letters, width) for _, letters in notes)


def _note_height(letters: int, width: float) -> float:
    return NOTE_LINE * math.ceil(letters * NOTE_LETTER / (0.95 * width))


def _cell_width(cell: Cell) -> float:
    marks = 4.0 * len(",".join(map(str, cell.marks)))
    return _text_width(cell.text) * (1.16 if cell.best else 1.0) + marks


@lru_cache(maxsize=4096)  # names of rows stand in every table
def _text_width(text: str) -> float:
    """About the width of a text in Computer Modern at 10 pt."""
    return sum(map(_letter_width, text))


def _letter_width(letter: str) -> float:
    if letter in "iljfI.,:;|'![] ":
        return 3.4
    if letter in "rstce()-":
        return 4.4
    if letter in "mwMW±×→←%…—" or not letter.isascii():
        return 8.4
    return 7.3 if letter.isupper() else 5.4
