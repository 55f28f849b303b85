"""The kernels table: a line for every scheme, layer shape and batch."""

from __future__ import annotations

from harness.report.names import Footnotes, missing
from harness.report.rows import Figure, Row
from harness.report.table import Cell, Column, Note, Table, ranged, significant
from harness.suites.shapes import parse_task

SUITE = "kernels"
COLUMNS = (
    Column("scheme", "scheme", numeric=False),
    Column("shape", "inputs → outputs", numeric=False),
    Column("layers", "layers", on_screen=False),
    Column("batch", "batch", names_row=True),
    Column("full_ms", "full prec.", "ms"),
    Column("packed_ms", "packed", "ms"),
    Column("packed_gb_per_s", "packed", "GB/s"),
    Column("packed_share", "of read", "%"),
    Column("packed_speedup", "speed-up", "×"),
    Column("full_share", "full", "% of read", on_screen=False),
)


def kernels_table(model: str, rows: list[Row]) -> Table | None:
    """The table of one model's rows; None when the suite was not run."""
    footnotes = Footnotes()
    cells: list[list[Cell]] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        tasks = sorted({key[1] for key in row.figures if key[0] == SUITE}, key=parse_task)
        if SUITE in row.failures and not tasks:
            failed = missing(row, SUITE, footnotes)
            cells.append([Cell(row.scheme_label, row.scheme_label), *[failed] * 9])
        for task in tasks:
            # Methods share their kernels: one line for a scheme.
            if (row.scheme_label, task) not in seen:
                seen.add((row.scheme_label, task))
                cells.append(_line(row, task))
    if not cells:
        return None
    said = sorted(
        {
            _conditions(f)
            for row in rows
            for key, f in row.figures.items()
            if key[0] == SUITE and key[2] == "full_ms"
        }
    )
    notes = [
        Note(
            "Medians of products with one weight after another, more of them than caches hold; of "
            "read: share of the bandwidth that a sum over a large array reached in the same turns."
        ),
        *(Note(f"Conditions: {text}.") for text in said if text),
    ]
    return Table(
        SUITE,
        model,
        f"Layer products of {model}",
        list(COLUMNS),
        cells,
        notes,
        footnotes.texts,
        footnotes.causes,
    )


def _line(row: Row, task: str) -> list[Cell]:
    inputs, outputs, batch = parse_task(task)

    def figure(name: str) -> Figure | None:
        return row.figures.get((SUITE, task, name))

    def cell(name: str, factor: float = 1.0, spread: bool = False) -> Cell:
        found = figure(name)
        if found is None:
            return Cell()
        text = significant(factor * found.value)
        if spread:
            text = ranged(found.value, found.low, found.high)
        return Cell(text, found.value, found.stderr, found.low, found.high)

    full = figure("full_ms")
    layers = full.note("layers") if full else ""
    return [
        Cell(row.scheme_label, row.scheme_label),
        Cell(f"{inputs} → {outputs}", f"{inputs}x{outputs}"),
        Cell(layers, layers),
        Cell(str(batch), float(batch)),
        cell("full_ms"),
        cell("packed_ms", spread=True),
        cell("packed_gb_per_s"),
        cell("packed_share", 100),
        cell("packed_speedup"),
        cell("full_share", 100),
    ]


def _conditions(figure: Figure) -> str:
    parts = figure.notes.split("; ")
    return ", ".join(part for part in parts if not part.startswith(("kernel:", "layers:")))
