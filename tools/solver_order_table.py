"""The published order of solvers beside ours, by differences from GPTQ, in docs/methods.

Perplexities of two models do not compare; differences of the loss from GPTQ on the same model and
grid show the order of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.records.record import Record
from harness.report.frame import from_records
from harness.report.published import PublishedFigure, published_figures
from harness.report.rows import Row, read_rows
from harness.report.table import Cell, Column, Note, Table, measured
from tools.ablation_table import PERPLEXITY, against, is_plain, plain

NAME = "solver_order"
PUBLISHED = "Qronos"  # the table of results/published/solvers.csv
SCHEMES = ("w4", "w3")  # published
OURS = "w3g64"


def solver_order_table(records: Sequence[Record]) -> Table:
    """A line a solver that has published figures; ours are the cells without further options."""
    figures = [each for each in published_figures() if each.table == PUBLISHED]
    rows = [row for row in read_rows(from_records(records)).rows if PERPLEXITY in row.figures]
    plains = {row.method: row for row in rows if row.scheme == OURS and is_plain(row)}
    methods = list(dict.fromkeys(each.method for each in figures if each.scheme in SCHEMES))
    published = {(each.method, each.scheme): each for each in figures}
    columns = [Column("method", "method", numeric=False)]
    columns += [Column(f"published_{s}", f"published, {s}", "ppl (nat from GPTQ)") for s in SCHEMES]
    columns += [
        Column("ours", f"ours, {OURS}", "ppl ↓"),
        Column("difference", "from GPTQ", "nat a token"),
    ]
    lines = [
        [
            Cell(plains[method].method_label if method in plains else method, method),
            *(_published(published, method, scheme) for scheme in SCHEMES),
            *_ours(plains.get(method), rows),
        ]
        for method in methods
    ]
    model = figures[0].model
    full = next(each.value for each in figures if each.method == "none")
    ours = f" and {rows[0].model}" if rows else ""
    source = figures[0].source
    note = Note(
        f"Published: {model}, full precision {full:g}, columns in falling order of the Hessian's "
        f"diagonal; {source}. Ours: the cells of the table above without further options, with "
        "95 % paired bootstrap intervals over windows."
    )
    return Table(NAME, model, f"The order of solvers: {model}{ours}", columns, lines, [note])


def _published(figures: dict[tuple[str, str], PublishedFigure], method: str, scheme: str) -> Cell:
    figure, gptq = figures.get((method, scheme)), figures["gptq", scheme]
    if figure is None:
        return Cell()
    apart = math.log(figure.value / gptq.value)
    return Cell(f"{figure.value:g} ({apart:+.2f})", figure.value)


def _ours(row: Row | None, rows: Sequence[Row]) -> list[Cell]:
    if row is None:
        return [Cell("to run"), Cell()]
    figure = row.figures[PERPLEXITY]
    return [
        Cell(measured(figure.value, figure.stderr, 2, 3), figure.value, figure.stderr),
        against(row, plain(row, "gptq", rows)),
    ]
