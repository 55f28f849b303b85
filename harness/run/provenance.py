"""From figures to records: beside every number stands what is needed to repeat it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from harness.cell.keys import suite_semantics
from harness.cell.plan import CellPlan, identity
from harness.errors import StoreError
from harness.records.environment import environment
from harness.records.record import Failure, LayerReport, Metric, Record


def make_record(
    plan: CellPlan,
    stage: str,
    *,
    started_at: str,
    seconds: float,
    status: Literal["ok", "failed"] = "ok",
    metrics: list[Metric] | None = None,
    layers: list[LayerReport] | None = None,
    error: Failure | None = None,
    inputs: dict[str, str] | None = None,
    peak_memory_bytes: int | None = None,
    bits_per_weight: float | None = None,
    kernel: str | None = None,
    threads: int | None = None,
    placement: dict[str, str] | None = None,
) -> Record:
    """The record of one stage of a planned cell.

    placement  where the work was done, which changes none of its figures but time and memory.
    """
    assert plan.keys is not None
    config = plan.config
    _require_own_layers(config.method.name, layers or [])
    runtime = config.runtime
    return Record(
        key=plan.keys.stages[stage],
        cell_key=plan.keys.cell,
        suite=stage,
        status=status,
        cell=identity(config, bits_per_weight),
        metrics=metrics or [],
        layers=layers or [],
        error=error,
        config={
            **plan.keys.semantic,
            "suite": {stage: suite_semantics(config, stage)},
            "runtime": {"device": runtime.device, "kernel": runtime.kernel},
            "expected": dict(config.model.expected),
        },
        inputs={**plan.keys.inputs[stage], **(inputs or {})},
        environment={
            **environment(threads, runtime.device),
            "kernel": kernel,
            **(placement or {}),
        },
        started_at=started_at,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes,
    )


def _require_own_layers(method: str, layers: list[LayerReport]) -> None:
    """Refuse a record whose layers another method made than the one that names its cell."""
    others = sorted({layer.method for layer in layers} - {method})
    if others:
        raise StoreError(
            f"the layers of this cell were made by {', '.join(others)}, but the cell is named "
            f"after {method}: no figure is written under a method that did not make it."
        )


def failed_record(
    plan: CellPlan, failure: Failure, started_at: str, seconds: float, threads: int | None = None
) -> Record:
    """The record of a stage that has no figures."""
    return make_record(
        plan,
        failure.stage,
        started_at=started_at,
        seconds=seconds,
        status="failed",
        error=failure,
        threads=threads,
    )


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
