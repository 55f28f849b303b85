"""Migrate records of older schema versions.

There is one step per old version. To change the schema, raise SCHEMA_VERSION
(harness.records.record) and add the step from the previous version. Keys do not change, so old
records still count for their cells and show in reports: a change of figures is a version in the
keys, not a schema version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from harness.records.record import SCHEMA_VERSION

Step = Callable[[dict[str, Any]], dict[str, Any]]


def _newer_words(record: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had other words: twin for a baseline, layout for a model's structure."""

    def renamed(metric: Any) -> Any:
        if not isinstance(metric, dict):
            return metric  # validation reports it
        metric = dict(metric)
        if str(metric.get("name", "")).startswith("twin_"):
            metric["name"] = f"baseline_{metric['name'].removeprefix('twin_')}"
        if isinstance(notes := metric.get("notes"), dict) and "full-precision twin" in notes:
            reason = notes["full-precision twin"]
            rest = {name: note for name, note in notes.items() if name != "full-precision twin"}
            metric["notes"] = {**rest, "full-precision baseline": reason}
        if metric.get("name") in ("seconds", "peak_memory") and metric.get("task") == "layout":
            metric["task"] = "structure"
        return metric

    metrics = record.get("metrics")
    if isinstance(metrics, list):
        record = {**record, "metrics": [renamed(metric) for metric in metrics]}
    return record


def _without_items(record: dict[str, Any]) -> dict[str, Any]:
    """Version 2 had the values of windows and documents in the samples file alone.

    harness.records.items takes them from there; without that file the figures have none.
    """
    return record


# Steps by the version that they start from.
STEPS: Mapping[int, Step] = {1: _newer_words, 2: _without_items}


def migrated(text: str, steps: Mapping[int, Step] = STEPS, newest: int = SCHEMA_VERSION) -> Any:
    """Parse a record's JSON and migrate it to version `newest`; ValueError if it is not one."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("its JSON is not an object")
    version = values.get("schema_version", 1)
    while type(version) is int and version < newest and version in steps:
        version += 1
        values = {**steps[version - 1](values), "schema_version": version}
    return values


def newer_version(error: ValidationError) -> str | None:
    """The reason if validation failed because the record's version is too new; else None."""
    for each in error.errors():
        version = each["input"]
        if each["loc"] == ("schema_version",) and type(version) is int and version > SCHEMA_VERSION:
            return (
                f"schema_version {version}, and this Bitsweep knows up to {SCHEMA_VERSION}: "
                "read it with the version that wrote it"
            )
    return None
