"""How far the published tables are regenerated in a results folder, and what the rest needs.

Pure functions of records and of the experiment files.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from harness.config.experiments import Asked, Experiment, experiments, model_file
from harness.records.record import FULL_PRECISION, NOT_AVAILABLE, QUANTIZATION, Record
from harness.report.frame import from_records
from harness.report.names import Footnotes
from harness.report.published import LIMIT, published_figures
from harness.report.published_files import published_file
from harness.report.rows import Row, read_rows
from harness.report.table import Cell, Column, Note, Table, significant
from quant.allocation import budget_of
from quant.budget import Budget, parse_scheme

COMPLETE = "complete"
ESTIMATED = ", estimated"  # ends the hours of a file
# Seconds follow the size of a model only if its products outweigh everything else.
LEAST_PARAMETERS = 5e7
PUBLISHED_SEQUENCES = 128  # of calibration
COLUMNS = (
    Column("table", "table", numeric=False),
    Column("title", "what", numeric=False),
    Column("ours", "ours"),
    Column("state", "state", numeric=False),
    Column("hours", "hours", numeric=False),
    Column("disk", "disk", numeric=False),
)
Rates = dict[tuple[str, str], float]  # (stage, method) -> seconds a parameter


@dataclass(frozen=True)
class Progress:
    """One published table.

    ours     figures that the results folder has.
    absent   figures of models that nobody can have: `lacking`.
    reason   why the table cannot be regenerated; "" if it can.
    hours    for what is missing, from the records of the results folder; None if they do not say.
    disk     bytes for what is missing.
    """

    table: str
    title: str
    reason: str
    experiment: Experiment | None
    ours: int
    absent: int
    total: int
    hours: float | None
    disk: float = 0.0
    lacking: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        if self.reason or self.absent == self.total:
            return NOT_AVAILABLE
        if self.ours + self.absent == self.total:
            return COMPLETE
        return "begun" if self.ours else "open"

    @property
    def open(self) -> bool:
        """Whether a run would add figures."""
        return self.experiment is not None and self.state not in (COMPLETE, NOT_AVAILABLE)


def progress(records: Iterable[Record]) -> list[Progress]:
    """Every published table, in order."""
    records = list(records)
    rows = read_rows(from_records(records)).rows if records else []
    rates = seconds_a_parameter(records)
    owners = {table: each for each in experiments() for table in each.published}
    found = []
    with published_file("tables.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            owner = owners.get(line["table"])
            ours, rest, total = _counts(line["table"], owner, rows)
            absent = [model for model in rest if _absent(model)]
            hours = None if owner is None else _hours(owner, rows, rates)
            named = (line["table"], line["title"], line["reason"], owner)
            lacking = () if line["reason"] else tuple(dict.fromkeys(absent))
            disk = 0.0 if owner is None else disk_bytes(_missing(owner, rows))
            found.append(Progress(*named, ours, len(absent), total, hours, disk, lacking))
    return found


def _counts(
    table: str, owner: Experiment | None, rows: Sequence[Row]
) -> tuple[int, list[str], int]:
    """Ours, the models of the rest, and all of a table's figures; of a plot, of its cells."""
    figures = [each for each in published_figures() if each.table == table]
    if figures:
        ours = [each for each in figures if any(map(each.figure_in, rows))]
        rest = [each for each in figures if each not in ours]
        return len(ours), [each.model for each in rest], len(figures)
    asked = (
        {} if owner is None else dict.fromkeys((c.model, c.method, c.scheme) for c in owner.cells)
    )
    measured = {(r.model, r.method, r.scheme) for r in rows if r.figures}
    rest_of = [each for each in asked if each not in measured]
    return len(asked) - len(rest_of), [each[0] for each in rest_of], len(asked)


@lru_cache(maxsize=256)
def _absent(model: str) -> bool:
    """Whether nobody can have the model, as its file says, or it is none of language."""
    read = model_file(model)
    return not read or read.get("unavailable") is not None


@lru_cache(maxsize=256)
def _parameters(model: str) -> float | None:
    said = model_file(model).get("parameters")
    return None if said is None else float(said)


def seconds_a_parameter(records: Iterable[Record]) -> Rates:
    """The median seconds of each stage by parameter of the model, on the last run's machine.

    Of models that are large enough, and of whole texts and calibrations as long as the paper's.
    """
    last = max(records := list(records), key=lambda each: each.started_at, default=None)
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        size = _parameters(record.cell.model)
        enough = size is not None and size >= LEAST_PARAMETERS and _as_published(record)
        if record.status == "ok" and size and enough and _machine(record) == _machine(last):
            key = (record.suite, record.cell.method)
            found.setdefault(key, []).append(record.seconds / size)
    return {key: statistics.median(values) for key, values in found.items()}


def _as_published(record: Record) -> bool:
    if any(metric.notes.get(LIMIT) for metric in record.metrics):
        return False
    calib = record.config.get("calib") or {}
    calibrates = record.suite == QUANTIZATION and record.cell.calibration is not None
    return not calibrates or calib.get("sequences") == PUBLISHED_SEQUENCES


def _machine(record: Record | None) -> tuple[object, object]:
    environment = {} if record is None else record.environment
    gpu, machine = environment.get("gpu") or {}, environment.get("machine") or {}
    return gpu.get("name"), machine.get("cpu")


def _hours(owner: Experiment, rows: Sequence[Row], rates: Rates) -> float | None:
    """Hours for the cells that have no figures; None if the records do not say."""
    seconds = 0.0
    for cell in _missing(owner, rows):
        needed = [_seconds(cell, stage, rates) for stage in _stages(cell, owner)]
        known = [each for each in needed if each is not None]
        if len(known) < len(needed):
            return None
        seconds += sum(known)
    return seconds / 3600


def _missing(owner: Experiment, rows: Sequence[Row]) -> list[Asked]:
    """The cells without figures, except for those of models that cannot be had."""
    done = {
        (row.model, row.method, row.scheme, seed)
        for row in rows
        if row.figures
        for seed in row.seeds
    }
    return [
        cell
        for cell in owner.cells
        if (cell.model, cell.method, cell.scheme, cell.seed) not in done and not _absent(cell.model)
    ]


def disk_bytes(cells: Sequence[Asked]) -> float:
    """About what the models of cells and their quantized models take; 0 for unknown sizes."""
    # Made-up weights have the sizes of an architecture, and are not stored.
    cells = [cell for cell in cells if "architecture" not in model_file(cell.model)]
    models = dict.fromkeys(cell.model for cell in cells)
    whole = sum(2 * (_parameters(model) or 0.0) for model in models)
    quantized = [cell for cell in cells if cell.method != FULL_PRECISION]
    return whole + sum((_parameters(c.model) or 0.0) * _bits(c.scheme) / 8 for c in quantized)


def _bits(name: str) -> float:
    """Bits of a weight with its share of scale and zero-point; of several schemes the first's."""
    budget = budget_of(name)
    if budget is not None:
        return budget
    scheme = parse_scheme(name.partition("_head_")[0].partition("+")[0])
    if isinstance(scheme, Budget):
        return scheme.bits
    return scheme.bits + (
        0.0 if scheme.group_size is None else (16 + scheme.bits) / scheme.group_size
    )


def _stages(cell: Asked, owner: Experiment) -> list[str]:
    return [QUANTIZATION] * (cell.method != FULL_PRECISION) + list(owner.suites)


def _seconds(cell: Asked, stage: str, rates: Rates) -> float | None:
    size, rate = _parameters(cell.model), rates.get((stage, cell.method))
    return None if size is None or rate is None else size * rate


def progress_table(found: Sequence[Progress], place: str) -> Table:
    """The tables that are complete, and what the others need."""
    footnotes = Footnotes()
    lines = [_line(each, footnotes) for each in found]
    notes = [
        Note("ours: published figures with one of ours beside them; of a plot, its cells."),
        Note(
            "hours: an estimate, that of the file or, with ~, by the records of this folder on the "
            "machine of its last run. disk: models and quantized models, by their sizes."
        ),
    ]
    title = f"Published tables in {place}"
    return Table("paper", place, title, list(COLUMNS), lines, notes, footnotes.texts)


def _line(each: Progress, footnotes: Footnotes) -> list[Cell]:
    marks = tuple(map(footnotes.mark, filter(None, (each.reason, *_lacking(each)))))
    cells = [
        _text(each.table),
        _text(each.title),
        _text(f"{each.ours}/{each.total}"),
        Cell(each.state, each.state, marks=marks),
    ]
    if not each.open or each.experiment is None:
        return [*cells, Cell(), Cell()]
    said = each.experiment.fact("Hours").removesuffix(ESTIMATED) if each.hours is None else None
    hours = said or f"~ {_rounded(each.hours or 0.0)}"
    return [*cells, _text(hours), _text(f"{_rounded(each.disk / 1e9)} GB")]


def _rounded(value: float) -> str:
    """Two digits: "0.037", "1300"."""
    return significant(float(f"{value:.2g}"), 2)


def _lacking(each: Progress) -> list[str]:
    """Why some figures cannot be had: one sentence a model."""
    return [_why_absent(model) for model in each.lacking]


def _why_absent(model: str) -> str:
    said = model_file(model).get("unavailable", "it is no language model")
    return f"{model} is {NOT_AVAILABLE}: {said}"


def _text(text: str) -> Cell:
    return Cell(text, text)


def commands(found: Sequence[Progress]) -> list[str]:
    """The commands of the tables that are not complete, each with its tables."""
    lines: dict[Experiment, list[str]] = {}
    for each in found:
        if each.open and each.experiment is not None:
            lines.setdefault(each.experiment, []).append(each.table)
    return [
        f"{', '.join(tables)}: {owner.command} ({owner.fact('Hardware')}; {owner.fact('Memory')})"
        for owner, tables in lines.items()
    ]
