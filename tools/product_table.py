"""The full product of methods on the embedded model: experiment=methods/product, in docs/methods.

A line a solver with its transforms, a column a grid. The best of a grid is bold; what loses on the
same windows to plain rounding or plain GPTQ on its grid has marks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.records.record import Record
from harness.report.frame import from_records
from harness.report.rows import Row, read_rows
from harness.report.table import Cell, Column, Note, Table, measured
from tools.ablation_table import loses, plain

EXPERIMENT = "methods/product"
NAME = "product"
PERPLEXITY = ("perplexity", "embedded", "perplexity")
TO_RUN = f"To run: `bitsweep run experiment={EXPERIMENT}`, about half an hour on two cores."
LOSES = {"gptq": "†", "rtn": "‡"}  # marks of what is worse than a plain method on its grid


def product_table(records: Sequence[Record]) -> Table:
    """The table of the records' cells; lines in the order of the mean over the grids."""
    rows = [row for row in read_rows(from_records(records)).rows if PERPLEXITY in row.figures]
    quantized = [row for row in rows if not row.full_precision]
    stored = {row.scheme: row.bits_per_weight or 0 for row in quantized}
    schemes = sorted(stored, key=lambda scheme: (stored[scheme], scheme))
    lines: dict[str, dict[str, Row]] = {}
    for row in quantized:
        lines.setdefault(row.label, {})[row.scheme] = row
    best = {scheme: min(_values(lines, scheme), default=None) for scheme in schemes}
    ordered = sorted(lines, key=lambda label: (-len(lines[label]), _mean(lines[label])))
    columns = [Column("method", "method", numeric=False)]
    columns += [Column(scheme, scheme, "ppl ↓") for scheme in schemes]
    full = [row.figures[PERPLEXITY] for row in rows if row.full_precision]
    said = "".join(f" Full precision: {measured(f.value, f.stderr)}." for f in full)
    windows = max((i.count for row in rows for i in row.figures[PERPLEXITY].items), default=0)
    note = Note(
        f"Perplexity of the same {windows} windows of the stories in every cell, one calibration "
        f"seed.{said} {LOSES['rtn']}, {LOSES['gptq']}: worse than plain RTN, plain GPTQ on the "
        "same grid by the paired bootstrap over windows, 95 %. Lines in the order of their mean "
        "loss."
    )
    table = [
        [Cell(label, label), *(_cell(lines[label].get(s), quantized, best[s]) for s in schemes)]
        for label in ordered
    ]
    return Table(NAME, rows[0].model, "The product of methods", columns, table, [note])


def _values(lines: dict[str, dict[str, Row]], scheme: str) -> list[float]:
    return [line[scheme].figures[PERPLEXITY].value for line in lines.values() if scheme in line]


def _mean(line: dict[str, Row]) -> float:
    return sum(math.log(row.figures[PERPLEXITY].value) for row in line.values()) / len(line)


def _cell(row: Row | None, rows: Sequence[Row], best: float | None) -> Cell:
    if row is None:
        return Cell()
    figure = row.figures[PERPLEXITY]
    worse = [
        mark for method, mark in LOSES.items() if loses(row, plain(row, method, rows), PERPLEXITY)
    ]
    text = " ".join([measured(figure.value, figure.stderr), *worse])
    return Cell(text, figure.value, figure.stderr, best=figure.value == best)
