"""Tables of methods on the real model, each row beside another of the same windows: docs/methods.

Of experiments whose rows ask one question: what inputs on a grid cost beside weights alone, what
factors or fewer weights cost beside GPTQ at equal bytes, what a choice of bits gains beside one
scheme for all layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records.record import Record
from harness.report.frame import from_records
from harness.report.rows import Row, read_rows
from harness.report.table import Column, Note, Table
from tools.ablation_table import (
    COLUMNS,
    FAST,
    PERPLEXITY,
    against,
    first_cells,
    measured_windows,
    said_of_arithmetic,
)

# Said once, by the page or below the table.
UNSAID = (FAST, "simulated activations")


@dataclass(frozen=True)
class Protocol:
    """An experiment of methods and how its table is made.

    name     of the table and its markers in the page.
    title    above the table, before the model.
    against  heading of the column of differences.
    note     whom a row is compared with, as a sentence.
    other    the row that a row is compared with, of all rows; None for none.
    order    the key by which lines are sorted.
    """

    name: str
    experiment: str
    title: str
    against: str
    note: str
    other: Callable[[Row, Sequence[Row]], Row | None]
    order: Callable[[Row], tuple[Any, ...]]


def protocol_table(protocol: Protocol, records: Sequence[Record]) -> Table:
    """The table of an experiment's records, full precision first."""
    rows = [row for row in read_rows(from_records(records)).rows if PERPLEXITY in row.figures]
    rows.sort(key=lambda row: (not row.full_precision, *protocol.order(row)))
    windows = measured_windows(rows)
    columns = [*COLUMNS, Column("against", protocol.against, "nat a token")]
    note = Note(
        f"The first {windows} windows of WikiText-2's test text in every row, one draw of "
        f"calibration windows. {protocol.note} Differences are those of the mean loss, with 95 % "
        "paired bootstrap intervals over windows; loses: the whole interval is above 0."
        f"{said_of_arithmetic(rows)}"
    )
    model = rows[0].model if rows else ""
    lines = [[*first_cells(row, UNSAID), against(row, protocol.other(row, rows))] for row in rows]
    return Table(protocol.name, model, f"{protocol.title}: {model}", columns, lines, [note])


def _weights_alone(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the same method and weights without transforms; None if it is that one."""
    recipe = _recipe(row)
    if not recipe.pop("transform", None):
        return None
    return next((each for each in rows if _recipe(each) == recipe), None)


def _recipe(row: Row) -> dict[str, Any]:
    return json.loads(row.recipe)  # type: ignore[no-any-return]


def _gptq_of_as_many_bits(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of plain GPTQ with the nearest stored bits, within a quarter of a bit."""
    if row.full_precision or row.bits_per_weight is None:
        return None
    plains = [each for each in rows if each.method == "gptq" and _one_scheme(each)]
    found = min(plains, key=lambda each: _apart(row, each), default=None)
    return None if found is None or found is row or _apart(row, found) > 0.25 else found


def _one_scheme(row: Row) -> bool:
    """Whether a row has no transform and one scheme for all layers."""
    return not _recipe(row).get("transform") and not row.mixture


def _apart(row: Row, other: Row) -> float:
    return abs((row.bits_per_weight or 0) - (other.bits_per_weight or 0))


def _by_bits(row: Row) -> tuple[Any, ...]:
    return -round(2 * (row.bits_per_weight or 0)), row.figures[PERPLEXITY].value


ACTIVATIONS = Protocol(
    "activations",
    "methods/activations",
    "Inputs on a grid, simulated",
    "against weights alone",
    "Against: the same method and weights without a transform.",
    _weights_alone,
    lambda row: (-(row.bits or 0), "-a4" in row.scheme, "-a" in row.scheme, *_by_bits(row)[1:]),
)
EQUAL_BYTES = Protocol(
    "equal_bytes",
    "methods/equal_bytes",
    "Compression without retraining at equal bytes",
    "against GPTQ",
    "Against: GPTQ in as many bytes, none of whose weights are removed.",
    _gptq_of_as_many_bits,
    _by_bits,
)
ALLOCATION = Protocol(
    "allocation",
    "methods/allocation",
    "Choices of bits",
    "against one scheme",
    "Against: GPTQ with one scheme for all layers in as many bytes.",
    _gptq_of_as_many_bits,
    _by_bits,
)
PROTOCOLS = (ACTIVATIONS, EQUAL_BYTES, ALLOCATION)
