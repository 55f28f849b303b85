"""The first columns of every table: the names of a row, with footnote marks."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records.record import NOT_AVAILABLE, QUANTIZATION
from harness.report.rows import Row
from harness.report.table import Cell, Column


class Footnotes:
    """Numbers footnotes in the order of their first use; equal texts share a number."""

    def __init__(self) -> None:
        self.causes: set[int] = set()
        self._marks: dict[str, int] = {}
        self._differ: tuple[Sequence[Row], bool, bool] = ((), False, False)

    def differ(self, rows: Sequence[Row]) -> tuple[bool, bool]:
        """Whether the rows of the table differ in calibration, and have several seeds."""
        if self._differ[0] is not rows:  # asked for every row
            self._differ = rows, len(calibrations(rows)) > 1, several_seeds(rows)
        return self._differ[1:]

    @property
    def texts(self) -> list[str]:
        return list(self._marks)

    def mark(self, text: str) -> int:
        return self._marks.setdefault(text, len(self._marks) + 1)

    def cause(self, text: str) -> int:
        """The mark of a footnote with the cause of a failure."""
        mark = self.mark(text)
        self.causes.add(mark)
        return mark


def name_columns(rows: Sequence[Row]) -> list[Column]:
    """Method and scheme; calibration and seeds only if rows differ in them."""
    columns = [Column("method", "method", numeric=False), Column("scheme", "scheme", numeric=False)]
    if len(calibrations(rows)) > 1:
        columns.append(Column("calibration", "calibration", numeric=False))
    if several_seeds(rows):
        columns.append(Column("seeds", "seeds"))
    return [*columns, Column("bits_per_weight", "bits/", "weight")]


def name_cells(row: Row, rows: Sequence[Row], footnotes: Footnotes) -> list[Cell]:
    said = [*row.coverage, *row.transforms, *(f"fallback in {text}" for text in row.fallbacks)]
    marks = tuple(footnotes.mark(text) for text in said)
    of_scheme = tuple(footnotes.mark(text) for text in (*row.mixture, *row.head))
    cells = [
        Cell(row.label, row.label, marks=marks),
        Cell(row.scheme_label, row.scheme_label, marks=of_scheme),
    ]
    calibrated, seeded = footnotes.differ(rows)
    if calibrated:
        cells.append(Cell(row.calibration or "–", row.calibration or ""))
    if seeded:
        cells.append(Cell(str(len(row.seeds)), float(len(row.seeds))))
    bits = row.bits_per_weight
    return [*cells, Cell() if bits is None else Cell(f"{bits:.2f}", bits)]


def calibrations(rows: Sequence[Row]) -> list[str]:
    return sorted({row.calibration for row in rows if row.calibration})


def several_seeds(rows: Sequence[Row]) -> bool:
    return any(len(row.seeds) > 1 for row in rows)


def missing(row: Row, suite: str, footnotes: Footnotes) -> Cell:
    """The cell of a missing figure: "failed" or "n/a", with its cause, or not run."""
    for stage in (suite, QUANTIZATION):
        cause = row.failures.get(stage)
        if cause is not None:
            text, _, why = cause.partition(": ")
            if text == NOT_AVAILABLE:
                return Cell(text, marks=(footnotes.mark(why),))
            return Cell("failed", marks=(footnotes.cause(cause),))
    return Cell()


def busy_footnote(suite: str, rows: Sequence[Row]) -> str:
    """The footnote of a suite's timings that others disturbed, with the figures of all rows."""
    found: dict[str, list[str]] = {}
    timed = (each for row in rows for key, each in row.figures.items() if key[0] == suite)
    for part in sorted({part for each in timed for text in each.busy for part in text.split(", ")}):
        value, _, rest = part.partition(" ")
        found.setdefault(rest, []).append(value)
    said = [
        f"{'–'.join(dict.fromkeys((min(values, key=float), max(values, key=float))))} {rest}"
        for rest, values in sorted(found.items())
    ]
    return f"measured while the machine was busy ({', '.join(said)})"


def failed_seeds(row: Row, suite: str, footnotes: Footnotes) -> tuple[int, ...]:
    """Marks of a figure for which some seeds or tasks failed."""
    cause = row.failures.get(suite)
    if cause is None:
        return ()
    lacking = "seeds" if len(row.seeds) > 1 else "tasks"
    return footnotes.mark(f"without the {lacking} that failed"), footnotes.cause(cause)
