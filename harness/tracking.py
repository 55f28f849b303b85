"""Weights & Biases as a sink: one run a cell, offline unless asked otherwise.

Nothing in Bitsweep reads back from it; the records under results/ are the truth, and a tracker that
fails costs a warning, never a result.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import TrackerConfig
from harness.records.record import Metric, Record

if TYPE_CHECKING:
    import wandb

TRACKERS = ("none", "wandb")
MODES = ("offline", "online")
ID_DIGITS = 12

RESULT_COLUMNS = ["suite", "task", "metric", "value", "stderr", "unit", "n", "n_unit", "p10", "p90"]
LAYER_COLUMNS = [
    "layer",
    "block",
    "method",
    "outputs",
    "inputs",
    "loss",
    "weight_error",
    "damping",
    "dead_columns",
    "fallback",
    "seconds",
]


class TrackingWarning(UserWarning):
    """The tracker did not take a cell; its records are safe on disk."""


def log_cell(
    config: Mapping[str, Any],
    records: Sequence[Record],
    figures: Sequence[Path],
    settings: TrackerConfig,
    directory: Path,
    group: str = "run",
) -> Path | None:
    """Log the records of one cell as one run; the run's folder, or None when there is none.

    config     what decides the cell's figures, as its records say it.
    figures    PNG files to log beside the tables.
    directory  the results folder: runs go to directory/wandb, and so do all of wandb's caches.
               A run is whole on disk after close().
    group      name of the experiment.

    With settings.name "none" nothing happens. Whatever wandb raises becomes a TrackingWarning that
    says where the records are; ValueError only for settings that are no tracker or mode, and
    records that are not of one cell.
    """
    _check(settings, records)
    if settings.name == "none" or not records:
        return None
    try:
        return _log(config, records, figures, settings, directory, group)
    except Exception as error:  # a sink must not lose what was measured
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(
            f"wandb did not take the run {run_name(records[0])} ({reason}); nothing is lost, its "
            f"records are in {directory / 'cells'}. Use tracker=none to run without wandb.",
            TrackingWarning,
            stacklevel=2,
        )
        return None


def close() -> None:
    """Wait until every run is whole on disk; Python does so too when the process ends normally.

    wandb writes in a process of its own, which log_cell does not wait for.
    """
    module = sys.modules.get("wandb")
    if module is not None:
        module.teardown()


def run_id(record: Record) -> str:
    """The same cell has the same id on every machine, so a second upload replaces the first."""
    return record.cell_key[:ID_DIGITS]


def run_name(record: Record) -> str:
    cell = record.cell
    return f"{cell.model}-{cell.method}-{cell.scheme}-s{cell.seed}"


def summary_metrics(records: Sequence[Record]) -> dict[str, float | str]:
    """suite/task/metric -> value (and .../stderr), and the state of every suite."""
    summary: dict[str, float | str] = {}
    for record in records:
        summary[f"{record.suite}/status"] = record.status
        summary[f"{record.suite}/seconds"] = record.seconds
        if record.error is not None:
            summary[f"{record.suite}/error"] = f"{record.error.type}: {record.error.message}"
        for metric in record.metrics:
            name = f"{record.suite}/{metric.task}/{metric.name}"
            summary[name] = metric.value
            if metric.stderr is not None:
                summary[f"{name}/stderr"] = metric.stderr
    bits = next((r.cell.bits_per_weight for r in records if r.cell.bits_per_weight), None)
    return summary if bits is None else {**summary, "bits_per_weight": bits}


def _check(settings: TrackerConfig, records: Sequence[Record]) -> None:
    for name, value, allowed in (
        ("tracker", settings.name, TRACKERS),
        ("tracker.mode", settings.mode, MODES),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value} is unknown; choose one of {', '.join(allowed)}.")
    cells = {record.cell_key for record in records}
    if len(cells) > 1:
        raise ValueError(f"one run holds one cell, but these records are of {len(cells)} cells.")


def _log(
    config: Mapping[str, Any],
    records: Sequence[Record],
    figures: Sequence[Path],
    settings: TrackerConfig,
    directory: Path,
    group: str,
) -> Path:
    home = directory.resolve() / "wandb"
    for folder in _folders(home).values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    with _environment(_folders(home)):
        import wandb

        online = settings.mode == "online"
        if online and not wandb.api.api_key:
            raise RuntimeError(
                "tracker.mode=online needs an API key: run `wandb login`, set WANDB_API_KEY, or "
                "keep tracker.mode=offline and upload later with `wandb sync`"
            )
        with wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=run_id(records[0]),
            name=run_name(records[0]),
            group=group,
            job_type="cell",
            tags=sorted({record.suite for record in records}),
            config=dict(config),
            mode="online" if online else "offline",
            settings=_quiet(directory.resolve()),
        ) as run:
            run.log(_payload(wandb, records, figures))
            run.summary.update(summary_metrics(records))
            return Path(run.dir).parent


def _payload(wandb: Any, records: Sequence[Record], figures: Sequence[Path]) -> dict[str, Any]:
    """Tables and plots, logged once: repeated logging would duplicate them on every sync."""
    results = [_result_row(record, metric) for record in records for metric in record.metrics]
    payload: dict[str, Any] = {"results": wandb.Table(columns=RESULT_COLUMNS, data=results)}
    layers = [
        [
            layer.name,
            layer.block,
            layer.method,
            layer.outputs,
            layer.inputs,
            layer.loss,
            layer.weight_error,
            layer.damping,
            layer.dead_columns,
            layer.fallback,
            layer.seconds,
        ]
        for record in records
        for layer in record.layers
    ]
    if layers:
        payload["layers"] = wandb.Table(columns=LAYER_COLUMNS, data=layers, allow_mixed_types=True)
    for figure in figures:
        payload[f"plots/{figure.stem}"] = wandb.Image(str(figure))
    return payload


def _result_row(record: Record, metric: Metric) -> list[Any]:
    quantiles = metric.quantiles or {}
    return [
        record.suite,
        metric.task,
        metric.name,
        metric.value,
        metric.stderr,
        metric.unit,
        metric.n,
        metric.n_unit,
        quantiles.get("p10"),
        quantiles.get("p90"),
    ]


def _quiet(directory: Path) -> wandb.Settings:
    """No console output, no look around the machine, no prompt for a login."""
    import wandb

    return wandb.Settings(
        root_dir=str(directory),
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=30,
    )


def _folders(home: Path) -> dict[str, str]:
    """Where wandb keeps what belongs to no run: beside the runs, so that copying them is enough."""
    return {
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_DATA_DIR": str(home / "data"),
    }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for the time of a run; what the user had set comes back."""
    # Error reports to the makers of wandb are no part of an offline run.
    values = {**values, "WANDB_ERROR_REPORTING": "false"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
