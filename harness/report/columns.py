"""Declarations of suites for reports: columns of tables, whole tables, plots.

Plain data and functions of rows; harness.report.assemble makes the tables. A suite with one figure
needs one line:

    table = SuiteTable(columns=(FigureColumn("toy_score", "score", "points"),))

makes a table with a column "score, points". `joins=ACCURACY` puts the column into the table of
accuracies instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from harness.report.rows import Figure, FigureKey, Row
from harness.report.serving import Serving
from harness.report.table import Cell, Column, Note, Table, measured, significant, small


@dataclass(frozen=True)
class Place:
    """A table of the report, which several suites may share.

    title  with "{model}" for the name of the model.
    rank   tables are sorted by it.
    """

    name: str
    title: str
    rank: int = 100


ACCURACY = Place("accuracy", "Accuracy of {model}", 10)
COST = Place("cost", "Time and memory of {model}", 30)


@dataclass(frozen=True)
class AgainstBits:
    """A plot of figures against bits per weight, with one panel per column.

    clip  figures above this multiple of full precision are drawn as arrows at the upper edge.
    """

    name: str
    title: str
    logarithmic: bool = False
    clip: float | None = None


@dataclass(frozen=True)
class ByRow:
    """A plot with a line per row: the figure with p10 to p90, and a second metric.

    axis    label of the horizontal axis.
    beside  the second metric (hollow marker), and its name in the legend.
    """

    name: str
    title: str
    axis: str
    beside: tuple[str, str] | None = None


@dataclass(frozen=True)
class AgainstPosition:
    """A plot of a metric against the position in the context: a line a row, a panel a task.

    Its figures have the note `position` (harness.report.curves).

    axis  label of the vertical axis, with the unit.
    by    note that names a line, where a row has several: then every row has panels of its own, one
          for each text of the note `panel`.
    """

    metric: str
    name: str
    title: str
    axis: str
    by: str = ""


def quantity(figure: Figure) -> Cell:
    """A figure to the digits of its standard error, fractions in per cent, (spread over seeds)."""
    factor, least, most = (100.0, 1, 1) if figure.unit == "fraction" else (1.0, 2, 6)
    error = None if figure.stderr is None else factor * figure.stderr
    if error is None and figure.unit != "fraction" and abs(figure.value) < 1:
        text = small(figure.value, 3)  # fixed decimals would give "0.00" for small figures
    else:
        text = measured(factor * figure.value, error, least, most)
    if figure.spread is not None:
        text += f" ({significant(factor * figure.spread, 2)})"
    return Cell(text, figure.value, figure.stderr, spread=figure.spread)


def says_nothing(_row: Row, _key: FigureKey, _rows: Sequence[Row]) -> list[str]:
    return []


def is_missing(_row: Row, _key: FigureKey) -> str | None:
    return None


@dataclass(frozen=True)
class FigureColumn:
    """The column of one metric's figures in a table.

    metric     its name in records.
    header     first line of the header; "": the task, and `detail` gets the direction.
    detail     second line: quantity and unit. With several tasks, each has its column.
    write      formats the figure as a cell.
    name       name of the CSV column; "": the metric.
    task       the only task of the column; None: all tasks.
    on_screen  False: in files only.
    footnotes  caveats on the figure of a row: (row, key, all rows) -> sentences.
    absent     text for a row without the figure: None for failed or not run, "" for an empty
               cell, other text for a footnote.
    plot       the plot that shows the figures.
    quantity   what plots call it; "": the metric.
    cost       short name of the figure where it is a cost in Pareto fronts ("ms"); "": it is none.
    quality    the figure is a quality in Pareto fronts, as those of a table that is `compared` are.
    optional   True: some runs have no such figure (no baseline, another task). Otherwise a result
               without it is an error, because the column would silently be missing.
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
    cost: str = ""
    quality: bool = False
    optional: bool = False
    quantity: str = ""

    @property
    def named(self) -> str:
        """The quantity in words."""
        return self.quantity or self.metric.replace("_", " ")


@dataclass(frozen=True)
class Shown:
    """A column of a table: its figures and its declaration."""

    key: FigureKey
    declared: FigureColumn
    column: Column


def no_serving(_row: Row) -> Serving | None:
    return None


def no_notes(_rows: Sequence[Row], _shown: Sequence[Shown]) -> list[Note]:
    return []


def condition_notes(figures: Iterable[Figure], without: Sequence[str]) -> list[Note]:
    """Notes on the conditions of figures, `without` those that are shown elsewhere."""
    found = sorted({figure.notes_without(without) for figure in figures})
    return [Note(f"Conditions: {text}.") for text in found if text]


@dataclass(frozen=True)
class OwnTable:
    """A table that a suite makes itself: make(model, rows), which returns None without figures."""

    place: Place
    make: Callable[[str, list[Row]], Table | None]


@dataclass(frozen=True)
class SuiteTable:
    """The columns and tables of a suite in reports.

    columns    its columns, in order.
    joins      the table that they join; None: a table of the suite's own.
    rank       suites of one table are sorted by it.
    task_by_task  True: all columns of a task, then of the next; False: a metric for all tasks, then
               the next metric.
    every_column  show columns even if no row has their figure, but for optional ones.
    others     column for metrics of tasks that have none of `columns`; None: not shown.
    compared   the figures of a column are comparable: the best of a bit width is bold, figures on
               another sample are marked, and notes name the samples.
    notes      sentences under the table.
    tables     further tables that the suite makes itself.
    serving    the memory that a row takes when it serves; None where no record says.
    further    further tables of columns, each of which joins a place.
    curves     figures against positions; they stand in no table.
    fails      False: there is no table where the suite only failed, because another one says so.
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
    serving: Callable[[Row], Serving | None] = no_serving
    further: tuple[SuiteTable, ...] = ()
    curves: tuple[AgainstPosition, ...] = ()
    fails: bool = True

    @property
    def empty(self) -> bool:
        """Nothing is declared."""
        return not self.columns and self.others is None and not self.tables


# The table of a suite whose code is not available: all its metrics.
GENERIC = SuiteTable(others=FigureColumn(metric=""))
