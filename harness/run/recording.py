"""Records made from figures, each with what is needed to repeat it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.cell.cells import PendingCell, ResolvedCell
from harness.errors import StoreError
from harness.records.environment import environment
from harness.records.record import ABSENT, Failure, LayerReport, Metric, Record
from harness.records.roots import Roots
from quant.allocation import Allocation, AskedScheme
from quant.head import is_embeddings, is_head
from quant.scheme import Scheme


@dataclass(frozen=True)
class StageResult:
    """The result of a stage.

    weights    entries on the model's weight files: harness.models.folders.weights_read.
    placement  where the work was done; it affects only the figures of time and memory.
    samples    scores of single documents, stored in a file beside the record.
    failures   causes of tasks without figures, by name of the task.
    """

    metrics: list[Metric] = field(default_factory=list)
    layers: list[LayerReport] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    placement: dict[str, str] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    bits_per_weight: float | None = None
    coverage: float | None = None
    outside: list[str] = field(default_factory=list)
    mixture: str | None = None
    kernel: str | None = None


@dataclass(frozen=True)
class Timing:
    """Start of a stage, its seconds, the threads of PyTorch, and what harness.run.threads says."""

    started_at: str
    seconds: float
    threads: int | None = None
    cores: dict[str, Any] | None = None


def make_record(cell: ResolvedCell, stage: str, result: StageResult, timing: Timing) -> Record:
    """The record of a finished stage; its status is "failed" if any task has no figures.

    Raises StoreError if the layers were made by another method or scheme than the cell's.
    """
    measured = ("bits_per_weight", "coverage", "outside", "mixture")
    identity = cell.identity.model_copy(update={name: getattr(result, name) for name in measured})
    _require_own_layers(cell, result.layers)
    record = Record(
        status="failed" if result.failures else "ok",
        error=_lacking(stage, result.failures) if result.failures else None,
        cell=identity,
        metrics=result.metrics,
        layers=result.layers,
        weights=result.weights,
        peak_memory_bytes=result.peak_memory_bytes,
        **_shared(cell, stage, timing, result.inputs, result.kernel, result.placement),
    )
    return roots_of(cell).clean(record)


def failed_record(cell: ResolvedCell, failure: Failure, timing: Timing) -> Record:
    """The record of a failed stage."""
    record = Record(
        status="failed",
        cell=cell.identity,
        error=failure,
        **_shared(cell, failure.stage, timing, {}, None, {}),
    )
    return roots_of(cell).clean(record)


def absent_records(cell: ResolvedCell | PendingCell) -> list[Record]:
    """Records, for tables alone, of the stages of a cell that cannot be had."""
    return [
        Record(
            key="",
            cell_key=cell.identity.model_dump_json(),
            suite=stage,
            status="failed",
            cell=cell.identity,
            error=Failure(stage=stage, type=ABSENT, message=reason),
            config=_config_of_absent(cell),
            started_at=now(),
            seconds=0.0,
        )
        for stage, reason in cell.absent.items()
    ]


def _config_of_absent(cell: ResolvedCell | PendingCell) -> dict[str, Any]:
    if isinstance(cell, ResolvedCell):
        return dict(cell.keys.semantic)
    scheme = cell.choices.scheme
    return {
        "model": {"dtype": cell.model.config.dtype},
        "scheme": {
            "bits": 16 if scheme is None else scheme.bits,
            "group_size": scheme.group_size if isinstance(scheme, Scheme) else None,
        },
    }


def roots_of(cell: ResolvedCell) -> Roots:
    """The folders that a cell names, which its records name in the same way."""
    choices = cell.choices
    texts = [] if choices.calibration is None else [choices.calibration.path]
    for each in choices.suites:
        settings = vars(each.config)
        texts += [settings.get("path"), *settings.get("paths", {}).values()]
        texts += settings.get("files", {}).values()
    return Roots.of(
        [
            ("results", choices.results),
            ("model", cell.model.folder),
            ("data", None if choices.data is None else Path(choices.data)),
            *(("config-dir", Path(part.file).parent) for part in choices.parts if part.file),
            *(("texts", Path(text).expanduser().parent) for text in texts if text is not None),
        ]
    )


def _lacking(stage: str, failures: dict[str, str]) -> Failure:
    causes = "; ".join(f"task {name}: {cause}" for name, cause in failures.items())
    message = f"{causes}. The other tasks have their figures."
    return Failure(stage=stage, type="TaskError", message=message)


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _shared(
    cell: ResolvedCell,
    stage: str,
    timing: Timing,
    inputs: dict[str, str],
    kernel: str | None,
    placement: dict[str, str],
) -> dict[str, Any]:
    runtime = cell.choices.runtime
    return {
        "key": cell.keys.stages[stage],
        "cell_key": cell.keys.cell,
        "suite": stage,
        "config": {
            **cell.keys.semantic,
            "suite": {stage: cell.keys.suites.get(stage, {})},
            "runtime": {
                "device": runtime.device,
                "kernel": runtime.kernel,
                **({"devices": runtime.devices} if len(cell.devices.all) > 1 else {}),
            },
            "expected": dict(cell.expected),
            "parameters": cell.model.config.parameters,
        },
        "inputs": {**cell.keys.inputs[stage], **inputs},
        "environment": {
            **environment(timing.threads, runtime.device, runtime.record_host),
            "kernel": kernel,
            "arithmetic": cell.arithmetic,
            **({} if timing.cores is None else {"cores": timing.cores}),
            **placement,
        },
        "started_at": timing.started_at,
        "seconds": timing.seconds,
    }


def _require_own_layers(cell: ResolvedCell, layers: list[LayerReport]) -> None:
    """Raise StoreError for layers that were made by another method or scheme than the cell's.

    Head and embeddings have a scheme and a method of their own. An allowed fallback may use another
    method (rounding for experts without tokens): tables mark it.
    """
    scheme = cell.choices.scheme
    head = {layer.scheme for layer in layers if is_head(layer.name)}
    table = {layer.scheme for layer in layers if is_embeddings(layer.name)}
    inside = [each for each in layers if not is_head(each.name) and not is_embeddings(each.name)]
    method = cell.identity.method
    for what, named, found in (
        ("method", method, {layer.method for layer in inside if layer.fallback is None}),
        ("scheme", cell.identity.scheme, {each.scheme for each in inside if _other(each, scheme)}),
        ("head", scheme and scheme.head and scheme.head.name, head),
        ("embeddings", scheme and scheme.embeddings and scheme.embeddings.name, table),
    ):
        if found - {named}:
            raise StoreError(
                f"layers of this cell have {what} {', '.join(sorted(found - {named}))}, but the "
                f"cell has {named}: a record must name the {what} that made its weights; "
                "correct the solver's spec or its solve function."
            )


def _other(layer: LayerReport, scheme: AskedScheme | None) -> bool:
    """Whether a layer has a scheme that the cell's gives it in no case."""
    if scheme is not None and not isinstance(scheme, Allocation):
        return layer.scheme != scheme.of(layer.name).name
    return scheme is None or layer.scheme not in [each.name for each in scheme.every]
