"""The divergence table: KL from full precision, and of the kernel from the dequantized weights."""

from __future__ import annotations

from collections.abc import Callable

from harness.report.names import (
    Footnotes,
    failed_seeds,
    missing,
    name_cells,
    name_columns,
)
from harness.report.rows import Figure, FigureKey, Row
from harness.report.table import Cell, Column, Note, Table, measured, small

SUITE = "divergence"


def _mean(figure: Figure) -> Cell:
    text = small(figure.value) + (f" ± {small(figure.stderr, 1)}" if figure.stderr else "")
    return Cell(text, figure.value, figure.stderr, figure.low, figure.high)


def _median(figure: Figure) -> Cell:
    return Cell() if figure.median is None else Cell(small(figure.median), figure.median)


def _p99(figure: Figure) -> Cell:
    return Cell() if figure.p99 is None else Cell(small(figure.p99), figure.p99)


def _largest(figure: Figure) -> Cell:
    return Cell(small(figure.value), figure.value)


def _percent(figure: Figure) -> Cell:
    error = None if figure.stderr is None else 100 * figure.stderr
    return Cell(measured(100 * figure.value, error, 1, 2), figure.value, figure.stderr)


def _agreement(figure: Figure) -> Cell:
    return Cell(f"{100 * figure.value:.2f}", figure.value, figure.stderr)


# (metric, header, detail, name of the CSV column, how it is written, on screen)
Written = tuple[str, str, str, str, Callable[[Figure], Cell], bool]
COLUMNS: tuple[Written, ...] = (
    ("kl_divergence", "KL full‖quant.", "nat, mean", "kl_divergence", _mean, True),
    ("kl_divergence", "", "median", "kl_divergence_median", _median, True),
    ("kl_divergence", "", "p99", "kl_divergence_p99", _p99, True),
    ("top1_flip_rate", "flips", "%", "top1_flip_rate", _percent, True),
    ("kernel_kl", "KL kernel", "nat, mean", "kernel_kl", _largest, True),
    ("kernel_kl_max", "", "max", "kernel_kl_max", _largest, True),
    ("kernel_top1_agreement", "agree", "%", "kernel_top1_agreement", _agreement, False),
    ("kl_floor", "floor", "nat", "kl_floor", _largest, False),
)


def divergence_table(model: str, rows: list[Row]) -> Table | None:
    """The table of one model's rows; None when the suite was not run."""
    tasks = sorted({key[1] for row in rows for key in row.figures if key[0] == SUITE})
    if not tasks and not any(SUITE in row.failures for row in rows):
        return None
    footnotes = Footnotes()
    columns = name_columns(rows)
    for task in tasks or [SUITE]:
        prefix = f"{task}:" if len(tasks) > 1 else ""
        columns += [
            Column(prefix + name, header or detail, detail * bool(header), on_screen=shown)
            for _, header, detail, name, _, shown in COLUMNS
        ]
    cells = []
    for row in rows:
        line = name_cells(row, rows, footnotes)
        for task in tasks or [SUITE]:
            line += [_cell(row, task, metric, write, footnotes) for metric, *_, write, _ in COLUMNS]
        cells.append(line)
    title, notes = f"Divergence of {model}", _notes(rows, tasks, columns)
    return Table(SUITE, model, title, columns, cells, notes, footnotes.texts, footnotes.causes)


def _cell(
    row: Row, task: str, metric: str, write: Callable[[Figure], Cell], footnotes: Footnotes
) -> Cell:
    figure = row.figures.get((SUITE, task, metric))
    if figure is None:
        # A full-precision row has nothing to be compared with but itself: empty, not failed.
        return Cell() if row.full_precision else missing(row, SUITE, footnotes)
    marks = failed_seeds(row, SUITE, footnotes)
    if metric == "kernel_kl" and "parity: BROKEN" in figure.notes:
        marks += (footnotes.mark(f"parity {figure.note('parity')}: do not trust this kernel"),)
    cell = write(figure)
    return Cell(cell.text, cell.value, cell.stderr, cell.low, cell.high, marks)


def _notes(rows: list[Row], tasks: list[str], columns: list[Column]) -> list[Note]:
    figures = {key: figure for row in rows for key, figure in row.figures.items()}
    said = []
    for task in tasks:
        keys: list[FigureKey] = [(SUITE, task, name) for name in ("kernel_kl", "kl_floor")]
        figure = next((figures[key] for key in keys if key in figures), None)
        if figure is None:
            continue
        text = f"{task}: {figure.note('windows')} windows, {figure.n} positions"
        if keys[0] in figures:
            text += f"; KL kernel is of {figure.note('of')}, bound {figure.note('bound')}"
        said.append(Note(text + "."))
    agree, floor = (
        tuple(column.name for column in columns if column.name.endswith(name))
        for name in ("kernel_top1_agreement", "kl_floor")
    )
    return [
        Note(
            "KL in nats a position, in float64; flips: positions whose most likely token is "
            "another than in full precision. ± is one standard error over windows."
        ),
        Note(
            "Agree: positions where kernel and dequantized weights have one most likely token.",
            agree,
        ),
        Note("Floor: KL of a window alone from the same window beside itself in a batch.", floor),
        *said,
    ]
