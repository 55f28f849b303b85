"""What a suite declares to reports: columns of tables, tables of its own, plots.

Plain data and functions of rows; harness.report.assemble makes tables of it. A suite with one
figure needs one line:

    table = SuiteTable(columns=(FigureColumn("toy_score", "score", "points"),))

is a table of its own with a column "score, points". `joins=ACCURACY` puts the column into the table
of accuracies instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Column, Note, Table, measured, small


@dataclass(frozen=True)
class Place:
    """A table of the report. Suites that name the same one share its lines.

    title  "{model}" in it stands for the model.
    rank   tables stand in this order.
    """

    name: str
    title: str
    rank: int = 100


ACCURACY = Place("accuracy", "Accuracy of {model}", 10)
COST = Place("cost", "Time and memory of {model}", 30)


@dataclass(frozen=True)
class AgainstBits:
    """A plot of figures against bits per weight, a panel for each column that names it.

    clip  figures over so many times full precision are arrows at the upper edge.
    """

    name: str
    title: str
    logarithmic: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class ByRow:
    """A plot with a line for each row: the figure with its p10 to p90, and another metric beside.

    axis    what the horizontal axis says.
    beside  metric of the hollow marker, and what the legend calls it.
    """

    name: str
    title: str
    axis: str
    beside: tuple[str, str] | None = None


def quantity(figure: Figure) -> Cell:
    """A figure to the digits of its standard error, fractions in per cent; (spread over seeds)."""
    factor, least, most = (100.0, 1, 1) if figure.unit == "fraction" else (1.0, 2, 6)
    error = None if figure.stderr is None else factor * figure.stderr
    if error is None and figure.unit != "fraction" and abs(figure.value) < 1:
        text = small(figure.value, 3)  # nothing says how many decimals count: "0.00" would be none
    else:
        text = measured(factor * figure.value, error, least, most)
    if figure.spread is not None:
        text += f" ({measured(factor * figure.spread, None, least, most)})"
    return Cell(text, figure.value, figure.stderr)


def says_nothing(_row: Row, _key: FigureKey, _rows: Sequence[Row]) -> list[str]:
    return []


def is_missing(_row: Row, _key: FigureKey) -> str | None:
    return None


@dataclass(frozen=True)
class FigureColumn:
    """How the figures of one metric stand in a table.

    metric     its name in records.
    header     the first line of the column's head; "": the task, and `detail` gets the direction.
    detail     the second line: quantity and unit. Of several tasks, each has a column.
    write      the figure as a cell.
    name       of the CSV column; "": the metric.
    task       the only task that the column is about; None: every one.
    on_screen  False: in files alone.
    footnotes  what a reader must know about the figure of a row: (row, key, all rows) -> sentences.
    absent     what a row without the figure says: None, that its suite failed or was not run; ""
               nothing; other text, a footnote.
    plot       where the figures are drawn.
    optional   some runs leave the figure out (no baseline, another task). Of the others a run is
               refused that has no figure of this name: a column would be missing without a word.
    """

    metric: str
    header: str = ""
    detail: str = ""
    write: Callable[[Figure], Cell] = quantity
    name: str = ""
    task: str | None = None
    on_screen: bool = True
    footnotes: Callable[[Row, FigureKey, Sequence[Row]], list[str]] = says_nothing
    absent: Callable[[Row, FigureKey], str | None] = is_missing
    plot: AgainstBits | ByRow | None = None
    optional: bool = False


@dataclass(frozen=True)
class Shown:
    """A column that stands in a table: of which figures, declared how."""

    key: FigureKey
    declared: FigureColumn
    column: Column


def no_notes(_rows: Sequence[Row], _shown: Sequence[Shown]) -> list[Note]:
    return []


def condition_notes(figures: Iterable[Figure], without: Sequence[str]) -> list[Note]:
    """Under what conditions figures were taken, `without` the notes that are shown elsewhere."""
    found = sorted({figure.notes_without(without) for figure in figures})
    return [Note(f"Conditions: {text}.") for text in found if text]


@dataclass(frozen=True)
class OwnTable:
    """A table that a suite makes as a whole: make(model, rows), None without figures."""

    place: Place
    make: Callable[[str, list[Row]], Table | None]


@dataclass(frozen=True)
class SuiteTable:
    """What a suite adds to reports.

    columns    its columns, in their order.
    joins      the table that they join; None: one of the suite's own.
    rank       suites of one table stand in this order.
    task_by_task  all columns of a task, then of the next; False: a metric for all tasks, then the
               next metric.
    every_column  the columns stand there also where no row has their figure.
    others     how metrics of tasks that have none of `columns` stand there; None: not at all.
    compared   the figures of a column are compared: the best of a bit width is bold, one that was
               measured on something else is marked, and notes say on what they were measured.
    notes      sentences under the table.
    tables     whole tables besides.
    """

    columns: tuple[FigureColumn, ...] = ()
    joins: Place | None = None
    rank: int = 100
    task_by_task: bool = True
    every_column: bool = False
    others: FigureColumn | None = None
    compared: bool = False
    notes: Callable[[Sequence[Row], Sequence[Shown]], list[Note]] = no_notes
    tables: tuple[OwnTable, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing is declared."""
        return not self.columns and self.others is None and not self.tables


# The table of a suite whose code is not at hand: all its metrics.
GENERIC = SuiteTable(others=FigureColumn(metric=""))
