"""A table as plain values, and how its numbers are written: digits follow the standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

NARROW_NO_VALUE = "–"


@dataclass(frozen=True)
class Column:
    """header is what it is about (a task, "method"); detail its quantity and unit, or nothing."""

    name: str  # of the CSV column: bits_per_weight, c4:score
    header: str
    detail: str = ""
    numeric: bool = True
    on_screen: bool = True  # what follows from other columns is left to the files


@dataclass(frozen=True)
class Cell:
    """What is printed, and the figure behind it for the CSV; marks number the footnotes."""

    text: str = NARROW_NO_VALUE
    value: float | str | None = None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    marks: tuple[int, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Note:
    """A sentence under a table; one about columns stands only where one of them is shown."""

    text: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Pure content; harness.report.render writes it. footnotes[0] is mark 1.

    causes  the marks of the footnotes that say why something failed.
    csv     what the CSV holds instead, where it has more lines than anyone reads.
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
    """The table without the columns that are left to the files, and without what is said of them.

    Footnotes that only those columns refer to go too, and without `causes` those that say why
    something failed; the others are numbered anew.
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
    return replace(cell, marks=tuple(used.index(mark) + 1 for mark in cell.marks if mark in used))


def decimals_for(stderr: float | None, least: int) -> int:
    """Decimals that show two significant digits of the standard error, and at least `least`."""
    if not stderr:
        return least
    return max(least, 1 - math.floor(math.log10(stderr)))


def measured(value: float, stderr: float | None = None, least: int = 2, most: int = 6) -> str:
    """ "20.39 ± 0.32"; "1.2e+06 ± 3e+04" for what no one reads digit by digit."""
    if abs(value) >= 1e5:
        return f"{value:.2e}" + (f" ± {stderr:.0e}" if stderr is not None else "")
    decimals = min(decimals_for(stderr, least), most)
    if stderr is not None and stderr >= 10 and abs(value) >= 1e3:
        decimals = 0
    text = f"{value:.{decimals}f}"
    return text if stderr is None else f"{text} ± {stderr:.{decimals}f}"


def significant(value: float, digits: int = 3) -> str:
    """Plain decimals with so many significant digits: 1234, 12.3, 0.0123."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(decimals, 0)}f}"


def small(value: float, digits: int = 2) -> str:
    """ "0.0016", "1.4e-13": plain from a thousandth on, in powers of ten below."""
    if value == 0:
        return "0"
    return significant(value, digits) if abs(value) >= 1e-3 else f"{value:.{digits - 1}e}"


def ranged(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """ "12.3 [11.9–13.0]", all with the decimals of the value."""
    if low is None or high is None:
        return significant(value, digits)
    decimals = 0 if value == 0 else max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f} [{low:.{decimals}f}–{high:.{decimals}f}]"
