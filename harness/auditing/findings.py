"""The layers of an audit as they lie in its record, by kind, and what contradicts the claim."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from harness.records.record import Record
from harness.report.table import Cell, Column, Note, Table, significant
from quant.audit.verdict import ROUNDED, RTN
from quant.coverage import pattern

# Methods whose codes are not the nearest levels.
CALIBRATED = ("gptq", "gptaq", "qronos", "gpfq", "obq")

Layer = dict[str, Any]


def layers_of(record: Record, folder: Path) -> list[Layer]:
    """The layers of an audit, from the samples beside its record in `folder`."""
    assert record.samples_file is not None
    lines = (folder / record.samples_file).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def claim_of(record: Record) -> dict[str, str]:
    """What the checkpoint says of itself: claim, producer, format; tensors that differ."""
    return record.metrics[0].notes


def contradicting(layers: Sequence[Layer], claim: str) -> list[Layer]:
    """The layers whose codes are plain rounding although the files claim a calibrated method.

    A layer whose solver would round too (to nearest, nearly everywhere) contradicts nothing.
    """
    if claim not in CALIBRATED:
        return []
    return [
        layer for layer in layers if layer["verdict"] == ROUNDED and layer["solver_rounded"] < RTN
    ]


def by_kind(layers: Sequence[Layer], model: str) -> Table:
    """A table with one row for each kind of layer, scheme and verdict."""
    found: dict[tuple[str, str, str], list[Layer]] = {}
    for layer in layers:
        key = (pattern(layer["name"]), layer["scheme"] or "–", layer["verdict"])
        found.setdefault(key, []).append(layer)
    columns = [
        Column("layers", "layers", numeric=False),
        Column("scheme", "scheme", numeric=False),
        Column("verdict", "verdict", numeric=False),
        Column("count", "count"),
        Column("error", "error", "%"),
        Column("gain", "gain", "%"),
        Column("over_rounding", "error", "÷ rounding"),
        Column("over_solver", "error", "÷ solver"),
        Column("rounded", "nearest", "%"),
        Column("agreement", "as solver", "%"),
        Column("clipped", "clipped", "%"),
    ]
    rows = [
        [Cell(_short(name)), Cell(scheme), Cell(verdict), Cell(str(len(each))), *_medians(each)]
        for (name, scheme, verdict), each in found.items()
    ]
    said = Note(
        "Medians. Error: tr(E H Eᵀ) beside that of the layer's output. Gain: how far the error "
        "lies on the way from rounding to the solver on the same grids. Nearest: codes that are "
        "the nearest level. As solver: codes that GPTQ chooses too."
    )
    return Table("audit", model, f"Audit of {model}, by kind of layer", columns, rows, [said])


def verdicts(layers: Sequence[Layer]) -> list[tuple[str, int]]:
    """Verdicts and how many layers have them, the most frequent first."""
    return Counter(layer["verdict"] for layer in layers).most_common()


def ratio(layer: Layer, below: str) -> float | None:
    """The error of a layer over that of rounding ("rounding") or of the solver ("solver")."""
    error, other = layer.get("error"), layer.get(f"{below}_error")
    return error / other if error is not None and other else None


def _short(name: str) -> str:
    return name.rpartition(".*.")[2]


def _medians(layers: Sequence[Layer]) -> list[Cell]:
    def middle(values: list[float | None], write: Any) -> Cell:
        known = [value for value in values if value is not None]
        return Cell(write(median(known)), median(known)) if known else Cell()

    def percent(name: str, digits: int = 0) -> Cell:
        return middle([each.get(name) for each in layers], lambda v: f"{100 * v:.{digits}f}")

    return [
        middle([each.get("error") for each in layers], lambda v: significant(100 * v)),
        percent("gain"),
        middle([ratio(each, "rounding") for each in layers], significant),
        middle([ratio(each, "solver") for each in layers], significant),
        percent("rounded", 1),
        percent("agreement", 1),
        percent("clipped", 2),
    ]
