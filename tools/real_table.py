"""The README's table of a real model, from the records of experiment=real/smollm2.

A pure function of records and of the experiment file: every cell of its sweep has a line, and what
has not been measured yet is "to run".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.config.experiments import Asked, Experiment, experiment
from harness.records.record import FULL_PRECISION, NOT_AVAILABLE, QUANTIZATION, Record
from harness.report.build import provenance
from harness.report.differences import find_differences
from harness.report.frame import from_records
from harness.report.names import Footnotes
from harness.report.origin import origin_notes
from harness.report.rows import Figure, FigureKey, Row, read_rows
from harness.report.table import Cell, Column, Note, Table, measured, ranged, significant, small

EXPERIMENT = "real/smollm2"
NAME = "real"
TO_RUN = "to run"
LABELS = {FULL_PRECISION: "full prec.", "rtn": "RTN", "gptq": "GPTQ"}
PEER = (
    "For orientation only, because its protocol is not stated and its model was not quantized "
    "before: a peer's ladder of perplexities for the model of that name (TICO, pull request 761): "
    "full precision 17.38, GPTQ 22.39, GPTAQ 21.73; with a Hadamard rotation 19.70 and 19.25; with "
    "grids of least squared error too 19.39 and 19.00."
)


@dataclass(frozen=True)
class Shown:
    """A column: a figure of a suite, and how it is printed."""

    suite: str
    task: str
    metric: str
    header: str
    detail: str

    def shows(self, key: FigureKey) -> bool:
        """Whether the figure of a key stands in this column."""
        suite, task, metric = key
        return (suite, metric) == (self.suite, self.metric) and self.task in ("", task)

    def text(self, figure: Figure) -> str:
        if figure.unit == "fraction":
            error = None if figure.stderr is None else 100 * figure.stderr
            return measured(100 * figure.value, error, 1, 2)
        if figure.unit == "ms":
            return ranged(figure.value, figure.low, figure.high)
        if figure.unit == "nat":
            return small(figure.value)
        if figure.unit == "bytes":
            return f"{figure.value / 1e6:.0f}"
        if figure.unit == "s":
            return significant(figure.value)
        return measured(figure.value, figure.stderr, 2, 3)


SHOWN = (
    Shown("perplexity", "wikitext2", "perplexity", "WikiText-2", "ppl ↓"),
    Shown("divergence", "wikitext2", "kl_divergence", "KL full‖quant.", "nat ↓"),
    Shown("zeroshot", "lambada_openai", "accuracy", "LAMBADA", "acc. % ↑"),
    Shown("zeroshot", "piqa", "acc_norm", "PIQA", "norm. acc. % ↑"),
    Shown("zeroshot", "arc_easy", "acc_norm", "ARC-easy", "norm. acc. % ↑"),
    Shown("zeroshot", "arc_challenge", "acc_norm", "ARC-challenge", "norm. acc. % ↑"),
    Shown("latency", "", "decode_ms", "decode", "ms/token ↓"),
)


def real_table(records: Sequence[Record]) -> Table:
    """The table: a line for each cell of the experiment, in its order."""
    asked = experiment(EXPERIMENT)
    rows = {(row.method, row.scheme): row for row in _rows(records)}
    footnotes, said = Footnotes(), tested(list(rows.values()), SHOWN)
    lines = [
        _line(cell, rows.get((cell.method, cell.scheme)), footnotes, said) for cell in asked.cells
    ]
    columns = [
        Column("method", "method", numeric=False),
        Column("scheme", "scheme", numeric=False),
        Column("bits_per_weight", "bits/", "weight"),
        *(Column(f"{each.task}:{each.metric}", each.header, each.detail) for each in SHOWN),
    ]
    model = asked.cells[0].model
    notes = [Note(text) for text in _said(list(rows.values()), asked)]
    notes += origin_notes(list(rows.values()))
    notes += [Note(PEER)]
    title = f"A real model: {model}"
    return Table(NAME, model, title, columns, lines, notes, footnotes.texts, footnotes.causes)


def measured_on(records: Sequence[Record]) -> str:
    """One line for every environment: processor with its instruction set, versions, commit."""
    return "\n".join(f"Measured on: {line}." for line in provenance(list(records)))


def _rows(records: Sequence[Record]) -> list[Row]:
    return read_rows(from_records(records)).rows if records else []


Said = Mapping[tuple[int, FigureKey], Sequence[str]]


def tested(rows: Sequence[Row], shown: Sequence[Shown]) -> Said:
    """What is to be said of differences from full precision, by the id of a row and figure."""
    keys = dict.fromkeys(
        key
        for row in rows
        for key, figure in row.figures.items()
        if figure.items and any(column.shows(key) for column in shown)
    )
    found = find_differences(rows, list(keys))
    return {
        (id(row), key): found.footnotes(index, key)
        for index, row in enumerate(rows)
        for key in keys
    }


def _line(cell: Asked, row: Row | None, footnotes: Footnotes, said: Said) -> list[Cell]:
    label = LABELS.get(cell.method, cell.method)
    bits = None if row is None else row.bits_per_weight
    head = [
        Cell(label, label),
        Cell(cell.scheme if row is None else row.scheme_label, cell.scheme),
        Cell() if bits is None else Cell(f"{bits:.2f}", bits),
    ]
    return [*head, *(shown_cell(row, each, footnotes, said) for each in SHOWN)]


def shown_cell(row: Row | None, column: Shown, footnotes: Footnotes, said: Said) -> Cell:
    """The figure of a row in a column; what failed, is absent or to run, by name.

    said  footnotes on figures, from `tested`.
    """
    if row is None:
        return Cell(TO_RUN, TO_RUN)
    for key, figure in row.figures.items():
        if column.shows(key):
            texts = [f"measured while {each}" for each in _busy(figure)]
            marks = tuple(map(footnotes.mark, [*texts, *said.get((id(row), key), ())]))
            return Cell(column.text(figure), figure.value, figure.stderr, marks=marks)
    if row.full_precision and column.suite == "divergence" and column.suite not in row.failures:
        return Cell()  # it would be from itself
    for stage in (column.suite, QUANTIZATION):
        if stage in row.failures:
            cause = row.failures[stage]
            absent = cause.startswith(NOT_AVAILABLE)
            mark = footnotes.mark(cause.removeprefix(f"{NOT_AVAILABLE}: "))
            return Cell(NOT_AVAILABLE if absent else "failed", marks=(mark,))
    return Cell(TO_RUN, TO_RUN)


def _busy(figure: Figure) -> list[str]:
    return [f"the machine was busy ({', '.join(figure.busy)})"] if figure.busy else []


def _said(rows: Sequence[Row], asked: Experiment) -> list[str]:
    """Windows, documents and calibration text, as the records say; else where they will be said."""
    figures = [(key, figure) for row in rows for key, figure in row.figures.items()]
    windows = {
        f"{key[0]} on {figure.note('windows').partition(' ')[0]} windows of 2,048 tokens of "
        "WikiText-2's test text"
        for key, figure in figures
        if key[2] in ("perplexity", "kl_divergence") and figure.note("windows")
    }
    documents = {
        f"each task: {figure.n} documents" for key, figure in figures if key[0] == "zeroshot"
    }
    texts = {f"calibrated on {row.calibrated_on}" for row in rows if row.calibrated_on}
    parts = [*sorted(windows, reverse=True), *sorted(documents), *sorted(texts)]
    said = ["; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."] if parts else []
    said.append("± is one standard error over windows or documents; all rows see the same ones.")
    if any(_lacks(row) for row in rows) or len(rows) < len(asked.cells):
        said.append(f"To run: {asked.command}, which goes on where it was stopped.")
    return said


def _lacks(row: Row) -> bool:
    measured_suites = {key[0] for key in row.figures}
    return any(each.suite not in measured_suites for each in SHOWN)
