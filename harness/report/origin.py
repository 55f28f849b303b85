"""What reports say of weights that came from a GGUF file, whose values lie on a grid already."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness.models import gguf
from harness.report.names import Footnotes, name_cells, name_columns
from harness.report.rows import Row
from harness.report.table import Cell, Column, Note, Table, ranged

NAME = "weight_error"
# "Q4_1", "IQ3_XXS" and "MXFP4", not "F32" and "BF16"
_FEW_BITS = re.compile(r"(?:IQ|TQ|Q|MXFP|NVFP)(\d)")


def origin_notes(rows: Sequence[Row]) -> list[Note]:
    """A note for every table of a model, if its weights were quantized before they came."""
    found = {text: json.loads(text) for row in rows for text in row.made_of}
    said = (_said(origin) for _, origin in sorted(found.items()) if _bits(origin))
    return [Note(text) for text in dict.fromkeys(said)]


def error_table(model: str, rows: Sequence[Row]) -> Table | None:
    """How far every method moved the file's weights, by kind of layer; None if there is no file.

    A cell has the median of ||W - Q|| / ||W|| over the layers of a kind, its least and its most.
    """
    if not origin_notes(rows):
        return None
    chosen = [row for row in rows if row.weight_errors]
    errors = {id(row): _by_kind(row) for row in chosen}
    kinds = list(dict.fromkeys(kind for found in errors.values() for kind in found))
    if not kinds:
        return None
    footnotes = Footnotes()
    lines = [
        [
            *name_cells(row, chosen, footnotes),
            *(_cell(errors[id(row)].get(kind, [])) for kind in kinds),
        ]
        for row in chosen
    ]
    columns = [*name_columns(chosen), *(Column(kind, kind, "% of W") for kind in kinds)]
    note = Note(
        "Relative error ||W - Q|| / ||W|| against the weights of the file, by kind of layer: "
        "median [least–most] over its layers, in percent. Every record of a quantization has it by "
        "layer."
    )
    title = f"Change of the weights of {model}"
    return Table(NAME, model, title, columns, lines, [note], footnotes.texts, footnotes.causes)


def _by_kind(row: Row) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for text in row.weight_errors:
        for name, error in json.loads(text).items():
            found.setdefault(name.rpartition(".")[2], []).append(error)
    return found


def _cell(errors: list[float]) -> Cell:
    if not errors:
        return Cell()
    value, low, high = (
        100 * each for each in (statistics.median(errors), min(errors), max(errors))
    )
    return Cell(ranged(value, low, high), value, low=low, high=high)


def _bits(origin: Mapping[str, Any]) -> int | None:
    """Bits of the type that most weights of the file have; None if it has no few-bit types."""
    most = next(iter(origin["weights"]), "")
    found = _FEW_BITS.match(most)
    return None if found is None else int(found[1])


def _said(origin: Mapping[str, Any]) -> str:
    bits = _bits(origin)
    return (
        f"The weights are those of {origin['file']} ({gguf.kinds(origin)}), dequantized, not "
        f"those that were trained: they lie on a grid of {bits} bits "
        f"already. A {bits}-bit row rounds them a second time and is not exact, because its grid "
        "has other groups and another zero-point; its error adds to the file's own. Fewer bits are "
        "coarser than the file, and compare as on any model."
    )
