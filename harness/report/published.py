"""Published figures beside measured ones: published | ours ± sd | delta | band.

The figures are those of results/published, in this project's names for models, tasks, methods and
schemes. A measured row stands beside a published figure if model, method, options and scheme are
equal and the whole text or task was measured.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from harness.records.record import FULL_PRECISION, NOT_AVAILABLE, QUANTIZATION
from harness.report.columns import OwnTable, Place
from harness.report.names import Footnotes
from harness.report.published_files import published_file
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Column, Note, Table

# A model that is not quantized, or quantized without calibration, has no source of spread but
# arithmetic: its figure is the published one within this, or something differs.
EXACT_BAND = 0.02
# Sources print large figures with few digits: the least that is printed, from a value on.
PRINTED = ((1000.0, 100.0), (100.0, 1.0))
USUAL_DTYPE = "float16"  # of the sources
SEEDS = 3  # with fewer, the spread over calibration seeds is not known well enough for a band
NOT_RUN = "not run"
LIMIT = "limit"  # the note of a figure of a part of its text or task
# Protocol of the sources: 128 windows of 2048 tokens of C4, and measured on windows of 2048 tokens.
CALIBRATED_ON = "c4-train 128 x 2048"
WINDOW = "of 2048"
NOTES = {  # by unit
    "ppl": (
        f"Band: ± {EXACT_BAND}, or half of the last digit that the source prints, for full "
        "precision and rounding, which depend on no calibration text; two standard deviations over "
        f"calibration seeds for calibrated methods (from {SEEDS} seeds on)."
    ),
    "fraction": "Band: two standard errors of ours over the documents.",
    "s": "Times are of other hardware than the source's, so there is no band.",
}
COLUMNS = (
    Column("source", "table", numeric=False),
    Column("task", "task", numeric=False),
    Column("method", "method", numeric=False),
    Column("scheme", "scheme", numeric=False),
    Column("published", "published"),
    Column("ours", "ours", "± sd"),
    Column("delta", "delta"),
    Column("band", "band", "±"),
    Column("verdict", "verdict", numeric=False),
)


@dataclass(frozen=True)
class PublishedFigure:
    """One line of a file of results/published; scheme is "" where the source states none."""

    table: str
    model: str
    task: str
    metric: str
    method: str
    options: str
    scheme: str
    value: float
    unit: str
    hardware: str
    remark: str
    source: str

    @property
    def label(self) -> str:
        return f"{self.method} {self.options}".strip()

    def asks_for(self, row: Row) -> bool:
        """Whether a row is of the same model, method, options and scheme."""
        if row.model != self.model or (self.scheme and row.scheme != self.scheme):
            return False
        full = self.method == FULL_PRECISION
        if full or row.full_precision:
            return full and row.full_precision
        return (row.method, row.variant) == (self.method, self.options)

    def figure_in(self, row: Row) -> Figure | None:
        """Our figure of the same quantity in a row, if the row has it for all of the text."""
        if not self.asks_for(row):
            return None
        if row.calibration is not None and row.calibrated_on != CALIBRATED_ON:
            return None
        found = [
            figure
            for (_, task, metric), figure in row.figures.items()
            if (task, metric) == (self.task, self.metric) and whole(figure)
        ]
        return found[0] if found else None


def whole(figure: Figure) -> bool:
    """Whether a figure is of the whole text or task, in windows as long as the paper's."""
    windows = figure.note("windows")
    return not figure.note(LIMIT) and (not windows or windows.endswith(WINDOW))


@lru_cache(maxsize=1)
def published_figures() -> tuple[PublishedFigure, ...]:
    """All published figures, of every file of them; BitsweepError if there is none."""
    found: list[PublishedFigure] = []
    for path in sorted(published_file("tables.csv").parent.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if list(lines.fieldnames or ()) == [each.name for each in fields(PublishedFigure)]:
                found += [
                    PublishedFigure(**{**line, "value": float(line["value"])})  # type: ignore[arg-type]
                    for line in lines
                ]
    return tuple(found)


def published_value(row: Row, key: FigureKey) -> float | None:
    """The published figure of the same model, method, options, scheme and task; None without."""
    _, task, metric = key
    return next(
        (
            each.value
            for each in published_figures()
            if (each.task, each.metric) == (task, metric) and each.asks_for(row)
        ),
        None,
    )


def beside_published(place: Place, suite: str, metrics: Sequence[str]) -> OwnTable:
    """A table of the published figures of a suite's tasks and ours.

    metrics  of the suite, that are published.
    """

    def make(model: str, rows: list[Row]) -> Table | None:
        return _table(place, suite, metrics, model, rows)

    return OwnTable(place, make)


def _table(
    place: Place, suite: str, metrics: Sequence[str], model: str, rows: Sequence[Row]
) -> Table | None:
    """None if nothing is published for the model, or no published task was measured whole."""
    measured = {
        (task, metric)
        for row in rows
        for (owner, task, metric), figure in row.figures.items()
        if owner == suite and whole(figure)
    }
    absent = [row for row in rows if row.failures.get(suite, "").startswith(NOT_AVAILABLE)]
    lines = [
        each
        for each in published_figures()
        if each.model == model
        and each.metric in metrics
        and ((each.task, each.metric) in measured or any(map(each.asks_for, absent)))
    ]
    if not lines:
        return None
    footnotes = Footnotes()
    cells = [_line(each, rows, suite, footnotes) for each in lines]
    notes = [Note(NOTES[each.unit]) for each in {each.unit: each for each in lines}.values()]
    title = place.title.replace("{model}", model)
    return Table(
        place.name, model, title, list(COLUMNS), cells, notes, footnotes.texts, footnotes.causes
    )


def _line(
    published: PublishedFigure, rows: Sequence[Row], suite: str, footnotes: Footnotes
) -> list[Cell]:
    marks = (footnotes.mark(published.remark),) if published.remark else ()
    head = [
        _text(published.table),
        _text(published.task),
        _text(published.label),
        _text(published.scheme or "–"),
        Cell(shown(published, published.value), published.value, marks=marks),
    ]
    for row in rows:
        figure = published.figure_in(row)
        if figure is not None:
            return [*head, *_compared(published, row, figure, footnotes)]
    return [*head, _not_available(published, rows, suite, footnotes), Cell(), Cell(), Cell()]


def _compared(
    published: PublishedFigure, row: Row, figure: Figure, footnotes: Footnotes
) -> list[Cell]:
    spread = "" if figure.spread is None else f" ± {shown(published, figure.spread)}"
    ours = Cell(f"{shown(published, figure.value)}{spread}", figure.value, stderr=figure.spread)
    if published.unit == "s":  # of other hardware: a ratio, and nothing to be within
        ratio = figure.value / published.value
        mark = footnotes.mark(f"on {published.hardware}; delta is ours over published")
        return [ours, Cell(f"{ratio:.2f} x", ratio, marks=(mark,)), Cell(), Cell()]
    delta = figure.value - published.value
    cells = [ours, Cell(shown(published, delta, sign=True), delta)]
    allowed = band(published, row, figure)
    if allowed is None:
        mark = footnotes.mark(
            f"needs {SEEDS} calibration seeds for a band: add -m seed=0,1,2 to the command"
        )
        return [*cells, Cell(marks=(mark,)), Cell()]
    cells.append(Cell(shown(published, allowed), allowed))
    over = abs(delta) - allowed
    if over <= 0:
        return [*cells, _text("within")]
    text = f"outside by {shown(published, over)}"
    return [*cells, Cell(text, text, marks=tuple(map(footnotes.mark, _why(row))))]


def _why(row: Row) -> list[str]:
    """What differs from the source, as far as a row says; else where to look."""
    said = [*row.fallbacks, *row.coverage]
    if row.dtype != USUAL_DTYPE:
        said.append(f"computed in {row.dtype}, the source in {USUAL_DTYPE}")
    return said or ["nothing is known to differ from the source: see docs/paper.md, Differences"]


def band(published: PublishedFigure, row: Row, figure: Figure) -> float | None:
    """The difference that needs no explanation; None if too few seeds were run to know it."""
    if published.unit == "fraction":
        return None if figure.stderr is None else 2 * figure.stderr
    if row.calibration is None:
        steps = (step for least, step in PRINTED if published.value >= least)
        return max(EXACT_BAND, next(steps, 0.0) / 2)
    if figure.spread is None or figure.seeds < SEEDS:
        return None
    return 2 * figure.spread


def shown(published: PublishedFigure, value: float, sign: bool = False) -> str:
    """A value with the digits that the source prints; fractions as percents."""
    plus = "+" if sign else ""
    if published.unit == "fraction":
        return f"{100 * value:{plus}.2f} %"
    if published.unit == "s":
        return f"{value:{plus}.0f} s"
    if abs(value) >= 1e4:
        return f"{value:{plus}.1e}"
    return f"{value:{plus}.2f}"


def _not_available(
    published: PublishedFigure, rows: Sequence[Row], suite: str, footnotes: Footnotes
) -> Cell:
    """ "n/a" with the cause of a failure, or "not run"."""
    for row in filter(published.asks_for, rows):
        for stage in (suite, QUANTIZATION):
            if stage in row.failures:
                mark = footnotes.mark(row.failures[stage].removeprefix(f"{NOT_AVAILABLE}: "))
                return Cell(NOT_AVAILABLE, NOT_AVAILABLE, marks=(mark,))
    return _text(NOT_RUN)


def _text(text: str) -> Cell:
    return Cell(text, text)
