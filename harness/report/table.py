"""Tables as plain values, and number formats whose digits follow the standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

NARROW_NO_VALUE = "–"


@dataclass(frozen=True)
class Column:
    """A column. header: its subject (a task, "method"); detail: quantity and unit, or ""."""

    name: str  # of the CSV column: bits_per_weight, c4:score
    header: str
    detail: str = ""
    numeric: bool = True
    on_screen: bool = True  # False: in files only, such as what follows from other columns


@dataclass(frozen=True)
class Cell:
    """The printed text, the figure for the CSV, and the marks of footnotes."""

    text: str = NARROW_NO_VALUE
    value: float | str | None = None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    marks: tuple[int, ...] = ()
    best: bool = False
    spread: float | None = None  # the standard deviation over seeds


@dataclass(frozen=True)
class Note:
    """A sentence under a table; one about columns is shown only with one of them."""

    text: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """The content of a table; harness.report.render formats it. footnotes[0] has mark 1.

    causes  marks of footnotes with causes of failures.
    csv     another table for the CSV, which may have more lines.
    """

    name: str  # accuracy or cost
    model: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[Note] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)
    causes: set[int] = field(default_factory=set)
    csv: Table | None = None


def on_screen(table: Table, causes: bool = True) -> Table:
    """The table without columns that are in files only, and without their notes.

    Footnotes of only those columns are removed too and, if `causes` is False, those with causes of
    failures. The others are renumbered.
    """
    shown = [index for index, column in enumerate(table.columns) if column.on_screen]
    names = {table.columns[index].name for index in shown}
    marks = {mark for row in table.rows for index in shown for mark in row[index].marks}
    used = sorted(marks if causes else marks - table.causes)
    return replace(
        table,
        columns=[table.columns[index] for index in shown],
        rows=[[_renumbered(row[index], used) for index in shown] for row in table.rows],
        notes=[note for note in table.notes if not note.columns or names & set(note.columns)],
        footnotes=[table.footnotes[mark - 1] for mark in used],
        causes={number for number, mark in enumerate(used, 1) if mark in table.causes},
    )


def _renumbered(cell: Cell, used: list[int]) -> Cell:
    if not cell.marks:
        return cell
    return replace(cell, marks=tuple(used.index(mark) + 1 for mark in cell.marks if mark in used))


def fit_columns(
    columns: Sequence[Column], widths: Sequence[float], width: float
) -> list[list[int]]:
    """Indices of the columns of each panel of `width`: the names, and as many others as fit."""
    numbered = list(enumerate(columns))
    names = [index for index, column in numbered if not column.numeric]
    figures = [index for index, column in numbered if column.numeric]
    room = width - sum(widths[index] for index in names)
    panels: list[list[int]] = [[]]
    used = 0.0
    for index in figures:
        if panels[-1] and used + widths[index] > room:
            panels.append([])
            used = 0.0
        panels[-1].append(index)
        used += widths[index]
    return [names + panel for panel in panels]


def decimals_for(stderr: float | None, least: int) -> int:
    """Decimals that show two significant digits of the standard error, and at least `least`."""
    if not stderr:
        return least
    return max(least, 1 - math.floor(math.log10(stderr)))


def measured(value: float, stderr: float | None = None, least: int = 2, most: int = 6) -> str:
    """ "20.39 ± 0.32"; "1.2e+06 ± 3e+04" for large numbers."""
    if abs(value) >= 1e5:
        return f"{value:.2e}" + (f" ± {stderr:.0e}" if stderr is not None else "")
    decimals = min(decimals_for(stderr, least), most)
    if stderr is not None and stderr >= 10 and abs(value) >= 1e3:
        decimals = 0
    text = f"{value:.{decimals}f}"
    return text if stderr is None else f"{text} ± {stderr:.{decimals}f}"


def significant(value: float, digits: int = 3) -> str:
    """Plain decimals with `digits` significant digits: 1234, 12.3, 0.0123."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(decimals, 0)}f}"


def small(value: float, digits: int = 2) -> str:
    """ "0.0016", "1.4e-13": plain decimals from 0.001 on, exponents below."""
    if value == 0:
        return "0"
    return significant(value, digits) if abs(value) >= 1e-3 else f"{value:.{digits - 1}e}"


def ranged(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """ "12.3 [11.9–13.0]", all with the decimals of the value."""
    if low is None or high is None:
        return significant(value, digits)
    decimals = 0 if value == 0 else max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f} [{low:.{decimals}f}–{high:.{decimals}f}]"
