"""Time the products of a model's layers, packed and full precision, by layer shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import MISSING

from harness.errors import ConfigError
from harness.report.columns import OwnTable, Place, SuiteTable, condition_notes
from harness.report.names import Footnotes, busy_footnote, missing
from harness.report.rows import Figure, Row
from harness.report.table import Cell, Column, Note, Table, significant
from harness.suites.base import (
    Facts,
    Suite,
    SuiteContext,
    SuiteResult,
    at_least_one,
    machine_inputs,
)
from harness.suites.shapes import not_one_scheme, parse_task, task_name
from quant.budget import Budget

NAME = "kernels"


@dataclass
class Config:
    """Batch sizes, and the time of measurement."""

    batches: list[int] = MISSING  # rows of activations (tokens) per product
    seconds: float = 0.5  # of measurement for each layer shape and batch


def check(config: Config, facts: Facts) -> None:
    """ConfigError for a measurement without batches or time, and for layers of several schemes."""
    key = facts.key
    if not config.batches:
        raise ConfigError(f"{key}.batches is empty: give rows of activations, as in [1,16].")
    for batch in config.batches:
        at_least_one(f"{key}.batches", batch)
    if config.seconds <= 0:
        raise ConfigError(f"{key}.seconds={config.seconds} leaves no time; use seconds above 0.")
    factored = any(isinstance(each, Budget) for each in facts.schemes)
    reason = not_one_scheme([each.name for each in facts.schemes], factored)
    if reason is not None:
        raise ConfigError(f"{key}: model={facts.model}: {reason}.")


def run(context: SuiteContext, config: Config) -> SuiteResult:
    """Measure ms, GB/s, share of the read bandwidth and speed-up for every shape and batch."""
    from harness.suites import timing_products

    return timing_products.run(context, config)


NAME_COLUMNS = (
    Column("scheme", "scheme", numeric=False),
    Column("shape", "inputs → outputs", numeric=False),
    Column("layers", "layers", on_screen=False),
)
TIMES = (
    Column("full_ms", "full prec.", "ms"),
    Column("packed_ms", "packed", "ms"),
    Column("packed_gb_per_s", "packed", "GB/s"),
    Column("packed_share", "of read", "%"),
)
EVERY_BATCH = (
    *NAME_COLUMNS,
    Column("batch", "batch"),
    *TIMES,
    Column("packed_speedup", "speed-up", "×"),
    Column("full_share", "full", "% of read"),
)

Shape = tuple[int, int]  # inputs, outputs
Marks = Callable[[Figure], tuple[int, ...]]  # of the footnotes of a figure


def products_table(model: str, rows: list[Row]) -> Table | None:
    """The table of one model's rows; None if the suite was not run."""
    footnotes, measured, busy = Footnotes(), _measured(rows), busy_footnote(NAME, rows)

    def marks(figure: Figure) -> tuple[int, ...]:
        return (footnotes.mark(busy),) if figure.busy else ()

    batches = sorted({batch for by_batch in measured.values() for batch in by_batch})
    columns = [
        *NAME_COLUMNS,
        *TIMES,
        *(Column(f"speedup_b{each}", "×", f"b{each}") for each in batches),
    ]
    lines: list[list[Cell]] = []
    every: list[list[Cell]] = []
    for row in rows:
        shapes = [shape for label, shape in measured if label == row.scheme_label]
        if NAME in row.failures and not _tasks(row):
            failed = missing(row, NAME, footnotes)
            for table, width in ((lines, len(columns)), (every, len(EVERY_BATCH))):
                table.append([Cell(row.scheme_label, row.scheme_label), *[failed] * (width - 1)])
            continue
        for shape in shapes:
            # Kernels do not depend on the method: one line per scheme.
            by_batch = measured.pop((row.scheme_label, shape))
            lines.append(_line(shape, by_batch, batches, marks))
            every += [
                _csv_line(each, shape, batch, marks) for batch, each in sorted(by_batch.items())
            ]
    if not lines:
        return None
    title, texts = f"Layer products of {model}", (footnotes.texts, footnotes.causes)
    csv = Table(NAME, model, title, list(EVERY_BATCH), every, [], *texts)
    return Table(NAME, model, title, columns, lines, _notes(rows, batches), *texts, csv)


def _measured(rows: list[Row]) -> dict[tuple[str, Shape], dict[int, Row]]:
    """By scheme and shape: the row with the figures of each batch."""
    found: dict[tuple[str, Shape], dict[int, Row]] = {}
    for row in rows:
        for task in _tasks(row):
            inputs, outputs, batch = parse_task(task)
            by_batch = found.setdefault((row.scheme_label, (inputs, outputs)), {})
            by_batch.setdefault(batch, row)
    return found


def _tasks(row: Row) -> list[str]:
    return sorted({key[1] for key in row.figures if key[0] == NAME}, key=parse_task)


def _line(shape: Shape, by_batch: dict[int, Row], batches: list[int], marks: Marks) -> list[Cell]:
    """Times at the smallest batch of the table, speed-ups at all batches."""
    row, least = next(iter(by_batch.values())), batches[0]

    def cell(batch: int, name: str, factor: float = 1.0) -> Cell:
        return _cell(by_batch.get(batch), shape, batch, name, marks, factor)

    return [
        *_names(row, shape, min(by_batch)),
        cell(least, "full_ms"),
        cell(least, "packed_ms"),
        cell(least, "packed_gb_per_s"),
        cell(least, "packed_share", 100),
        *(cell(batch, "packed_speedup") for batch in batches),
    ]


def _csv_line(row: Row, shape: Shape, batch: int, marks: Marks) -> list[Cell]:
    figures = [column.name for column in EVERY_BATCH[len(NAME_COLUMNS) + 1 :]]
    return [
        *_names(row, shape, batch),
        Cell(str(batch), float(batch)),
        *(_cell(row, shape, batch, name, marks) for name in figures),
    ]


def _names(row: Row, shape: Shape, batch: int) -> list[Cell]:
    inputs, outputs = shape
    full = row.figures.get((NAME, task_name(inputs, outputs, batch), "full_ms"))
    layers = full.note("layers") if full else ""
    return [
        Cell(row.scheme_label, row.scheme_label),
        Cell(f"{inputs} → {outputs}", f"{inputs}x{outputs}"),
        Cell(layers, layers),
    ]


def _cell(
    row: Row | None,
    shape: Shape,
    batch: int,
    name: str,
    marks: Marks,
    factor: float = 1.0,
) -> Cell:
    found = None if row is None else row.figures.get((NAME, task_name(*shape, batch), name))
    if found is None:
        return Cell()
    text = significant(factor * found.value)
    return Cell(text, found.value, found.stderr, found.low, found.high, marks(found))


def _notes(rows: list[Row], batches: list[int]) -> list[Note]:
    if not batches:
        return []
    timed = (
        figure
        for row in rows
        for (suite, _, metric), figure in row.figures.items()
        if (suite, metric) == (NAME, "full_ms")
    )
    return [
        Note(
            "Medians of products with one weight after another, more of them than caches hold; of "
            "read: share of the bandwidth that a sum over a large array reached in the same turns."
        ),
        Note(
            f"ms, GB/s and of read: batch {batches[0]}. × bN: how many times faster than full "
            "precision at batch N (rows of activations). The CSV has every figure of every batch."
        ),
        *condition_notes(timed, ("kernel", "layers")),
    ]


PLACE = Place(NAME, "Layer products of {model}", 40)

SUITE = Suite(
    name=NAME,
    version=1,
    config=Config,
    run=run,
    check=check,
    inputs=machine_inputs,
    timing=True,
    table=SuiteTable(tables=(OwnTable(PLACE, products_table),)),
)
