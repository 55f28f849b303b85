"""The README's table of other producers, from the records of experiment=peers in tools/peers.

A pure function of records: quality, bytes and time of every producer, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.records.record import QUANTIZATION, Record
from harness.report.frame import from_records
from harness.report.names import Footnotes
from harness.report.origin import origin_notes
from harness.report.rows import Row, read_rows
from harness.report.table import Cell, Column, Note, Table
from tools.real_table import Said, Shown, shown_cell, tested

NAME = "peers"
TO_RUN = "No figures are kept yet: run the command."
SHOWN = (
    Shown("perplexity", "", "perplexity", "text", "ppl ↓"),
    Shown("divergence", "", "kl_divergence", "KL full‖quant.", "nat ↓"),
    Shown(QUANTIZATION, "total", "artifact_size", "files", "MB"),
    Shown(QUANTIZATION, "total", "seconds", "quant.", "s"),
    Shown(QUANTIZATION, "host", "peak_memory", "peak", "MB"),
)
TIMES = (
    "Seconds of other producers are their own, from the loaded model to the quantized one; ours "
    "have loading, text and writing. Peaks are of the whole process, imports and model included."
)


def peers_table(records: Sequence[Record]) -> Table:
    """The table: a line for every producer, method and scheme that has a record."""
    rows = read_rows(from_records(list(records))).rows
    footnotes = Footnotes()
    columns = [
        Column("method", "method", numeric=False),
        Column("scheme", "scheme", numeric=False),
        Column("bits_per_weight", "bits/", "weight"),
        *(Column(each.metric, each.header, each.detail) for each in SHOWN),
    ]
    said = tested(rows, SHOWN)
    lines = [_line(row, footnotes, said) for row in rows]
    model = rows[0].model
    notes = [Note(text) for text in [*_said(rows), *_programs(records), TIMES]]
    notes += origin_notes(rows)
    title = f"Producers side by side: {model}"
    return Table(NAME, model, title, columns, lines, notes, footnotes.texts, footnotes.causes)


def _line(row: Row, footnotes: Footnotes, said: Said) -> list[Cell]:
    bits = row.bits_per_weight
    head = [
        Cell(row.label, row.label),
        Cell(row.scheme_label, row.scheme),
        Cell() if bits is None else Cell(f"{bits:.2f}", bits),
    ]
    return [*head, *(_cell(row, each, footnotes, said) for each in SHOWN)]


def _cell(row: Row, column: Shown, footnotes: Footnotes, said: Said) -> Cell:
    if row.full_precision and column.suite == QUANTIZATION:
        return Cell()
    return shown_cell(row, column, footnotes, said)


def _said(rows: Sequence[Row]) -> list[str]:
    """Text and windows of both sides, as the records say."""
    measured = {
        f"{suite} on {figure.note('windows').partition(' ')[0]} windows of {task}"
        for row in rows
        for (suite, task, metric), figure in row.figures.items()
        if metric in ("perplexity", "kl_divergence") and figure.note("windows")
    }
    texts = sorted({row.calibrated_on for row in rows if row.calibrated_on})
    said = [f"Measured: {', '.join(sorted(measured, reverse=True))}."] if measured else []
    return [*said, *(f"All calibrated on {text}, the same windows." for text in texts)]


def _programs(records: Sequence[Record]) -> list[str]:
    """The programs with their versions, as the records name them."""
    found = {str(r.environment["program"]) for r in records if r.environment.get("program")}
    return [f"Programs: {', '.join(sorted(found))}."] if found else []
