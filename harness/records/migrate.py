"""Records of older versions in today's form.

A step for every version that was left behind: raise SCHEMA_VERSION (harness.records.record) and add
the step that makes the new form of the old one. Keys stay as they were, so an old record shows in
reports and answers for its cell: what changes a figure is a version in the keys, not this one.
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
            return metric  # the schema says what is wrong with it
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


# By the version that a step starts from.
STEPS: Mapping[int, Step] = {1: _newer_words}


def migrated(text: str, steps: Mapping[int, Step] = STEPS, newest: int = SCHEMA_VERSION) -> Any:
    """The values of a record's JSON, of an older version made those of `newest`; ValueError."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it is JSON, but no object")
    version = values.get("schema_version", 1)
    while type(version) is int and version < newest and version in steps:
        version += 1
        values = {**steps[version - 1](values), "schema_version": version}
    return values


def newer_version(error: ValidationError) -> str | None:
    """What to say of a record whose version is the reason why it does not fit; None of others."""
    for each in error.errors():
        version = each["input"]
        if each["loc"] == ("schema_version",) and type(version) is int and version > SCHEMA_VERSION:
            return (
                f"schema_version {version}, and this Bitsweep knows up to {SCHEMA_VERSION}: "
                "read it with the version that wrote it"
            )
    return None
