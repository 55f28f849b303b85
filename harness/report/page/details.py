"""What the page shows of a cell that is opened: configuration, layers, environment, command.

Whatever cells share (most of a configuration, the environment, the names of layers) is held once,
and cells refer to it by number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.records.record import LayerReport, Record
from harness.report.command import command
from harness.report.page.cells import Texts

DIGITS = 5  # of figures of layers; records hold all
_OF_A_RECORD = "cores"  # what others did meanwhile, in the environment of every record


def details(records: Sequence[Record], keys: Sequence[str]) -> dict[str, Any]:
    """The details of the cells with `keys`, in their order, and the parts that they share."""
    by_cell: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda each: (each.started_at, each.suite, each.key)):
        by_cell.setdefault(record.cell_key, []).append(record)
    parts = Texts()
    cells = [_details(by_cell[key], parts) for key in keys]
    return {"parts": [json.loads(text) for text in parts.numbers], "cells": cells}


def _details(records: Sequence[Record], parts: Texts) -> dict[str, Any]:
    """Of one cell; `records` from the oldest to the newest."""
    config: dict[str, Any] = {}
    suites: dict[str, Any] = {}
    for record in records:
        config |= record.config
        suites |= record.config.get("suite") or {}
    config["suite"] = {name: each for name, each in suites.items() if each}
    layers = next((each.layers for each in reversed(records) if each.layers), [])
    return {
        "command": command(records),
        "config": {
            name: parts.number(_json(value))
            for name, value in sorted(config.items())
            if value not in (None, {}, [])
        },
        "layers": _layers(layers, parts) if layers else None,
        "records": [
            {
                "suite": record.suite,
                "status": record.status,
                "key": record.key,
                "started": record.started_at,
                "seconds": _short(record.seconds),
                "peak": record.peak_memory_bytes,
                "environment": parts.number(_json(_environment(record.environment))),
                "busy": (record.environment.get(_OF_A_RECORD) or {}).get("busy"),
            }
            for record in records
        ],
    }


def _layers(layers: Sequence[LayerReport], parts: Texts) -> dict[str, Any]:
    """The layers in columns: what cells of one scheme share, and what is their own."""
    shared = {
        "name": [each.name for each in layers],
        "shape": [f"{each.outputs} × {each.inputs}" for each in layers],
        "scheme": [each.scheme for each in layers],
        "bits": [_short(each.bits_per_weight) for each in layers],
    }
    remarks = ["; ".join(filter(None, [each.fallback, *each.transforms])) for each in layers]
    dead = [each.dead_columns for each in layers]
    return {
        "shared": parts.number(_json(shared)),
        "loss": [_short(each.loss) for each in layers],
        "error": [_short(each.weight_error) for each in layers],
        "seconds": [_short(each.seconds) for each in layers],
        "damping": [_short(each.damping) for each in layers],
        **({"dead": dead} if any(dead) else {}),
        **({"remarks": [parts.number(_json(text)) for text in remarks]} if any(remarks) else {}),
    }


def _environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in environment.items() if name != _OF_A_RECORD and each}


def _short(value: float | None) -> float | None:
    """A number to DIGITS digits."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


# One for all: json.dumps makes another for every value.
_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str).encode
