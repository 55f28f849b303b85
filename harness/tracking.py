"""Log to Weights & Biases: one run per cell, offline by default.

Bitsweep never reads from it; the records under results/ are authoritative. A tracker that fails
causes a warning and costs no results.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import TrackerConfig
from harness.errors import ConfigError
from harness.records.record import QUANTIZATION, Metric, Record

if TYPE_CHECKING:
    import wandb

TRACKERS = ("none", "wandb")
OFFLINE, ONLINE = "offline", "online"
MODES = (OFFLINE, ONLINE)
ID_DIGITS = 12
NOT_IN_PROJECTS = "/\\#?%:"
MARK = "bitsweep.json"  # in the folder of a run: the records that it holds

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
    """A cell could not be logged; its records are safe on disk."""


def require_project(name: str, key: str) -> None:
    """Raise ConfigError for what cannot name a project; `key` is what the user gave it as."""
    if not name or any(each in NOT_IN_PROJECTS for each in name):
        raise ConfigError(
            f"{key}{name} cannot name a wandb project: use a name without any of "
            f"{' '.join(NOT_IN_PROJECTS)}; a user or team is the entity."
        )


def log_cell(
    config: Mapping[str, Any],
    records: Sequence[Record],
    figures: Sequence[Path],
    settings: TrackerConfig,
    directory: Path,
    group: str = "run",
) -> Path | None:
    """Log the records of one cell as one run; return the run's folder, or None if there is none.

    config     the configuration in the cell's records.
    figures    PNG files to log beside the tables.
    directory  the results folder; runs and all caches of wandb go to directory/wandb. A run is
               complete on disk after close().
    group      name of the experiment.

    Does nothing if settings.name is "none". Any error of wandb becomes a TrackingWarning. Raises
    ValueError only for an unknown tracker or mode, and for records of several cells.
    """
    _check(settings, records)
    if settings.name == "none" or not records:
        return None
    try:
        return _log(config, records, figures, settings, directory, group)
    except Exception as error:  # logging must not cost results
        warnings.warn(
            f"wandb could not log the run {run_name(records[0])} ({reason_of(error)}); its records "
            f"are safe in {directory / 'cells'}. Use tracker=none to run without wandb.",
            TrackingWarning,
            stacklevel=2,
        )
        return None


def reason_of(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def configuration(records: Sequence[Record]) -> dict[str, Any]:
    """The configuration of a cell as its records have it, with those of all its suites."""
    suites: dict[str, Any] = {}
    for record in records:
        if record.suite != QUANTIZATION:
            suites |= record.config.get("suite") or {}
    return {**records[0].config, "suite": suites}


def is_logged(records: Sequence[Record], settings: TrackerConfig, directory: Path) -> bool:
    """Whether a run in the results folder holds these records, logged in the same way."""
    said = json.dumps(_mark(records, settings))
    files = (directory / "wandb").glob(f"*-{run_id(records[0])}/{MARK}")
    return any(file.read_text(encoding="utf-8") == said for file in files)


def _mark(records: Sequence[Record], settings: TrackerConfig) -> dict[str, Any]:
    held = sorted([record.key, record.started_at] for record in records)
    place = [settings.mode, settings.entity or "", settings.project]
    return {"records": held, "place": place}


def close() -> None:
    """Wait until all runs are complete on disk, as Python does at a normal exit.

    wandb writes in a separate process, which log_cell does not wait for.
    """
    module = sys.modules.get("wandb")
    if module is not None:
        module.teardown()


def run_id(record: Record) -> str:
    """The run id, equal for a cell on every machine, so that a second upload replaces the first."""
    return record.cell_key[:ID_DIGITS]


def run_name(record: Record) -> str:
    cell = record.cell
    return f"{cell.model}-{cell.method}-{cell.scheme}-s{cell.seed}"


def summary_metrics(records: Sequence[Record]) -> dict[str, float | str]:
    """suite/task/metric -> value (and .../stderr), and the status of every suite."""
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
        raise ValueError(f"a run has the records of one cell, but these are of {len(cells)} cells.")


def _log(
    config: Mapping[str, Any],
    records: Sequence[Record],
    figures: Sequence[Path],
    settings: TrackerConfig,
    directory: Path,
    group: str,
) -> Path:
    with session(directory, settings) as wandb:
        with wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=run_id(records[0]),
            name=run_name(records[0]),
            group=group,
            job_type="cell",
            tags=sorted({record.suite for record in records}),
            config=dict(config),
            mode=settings.mode,
            settings=_quiet(directory.resolve()),
        ) as run:
            run.log(_payload(wandb, records, figures))
            run.summary.update(summary_metrics(records))
            folder = Path(run.dir).parent
        (folder / MARK).write_text(json.dumps(_mark(records, settings)), encoding="utf-8")
        return folder


@contextmanager
def session(directory: Path, settings: TrackerConfig) -> Iterator[Any]:
    """Context: the package wandb, with all that it keeps in directory/wandb.

    Raises RuntimeError if the tracker is online and nobody is logged in.
    """
    folders = _folders(directory.resolve() / "wandb")
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    with _environment(folders):
        import wandb

        if settings.mode == ONLINE and not wandb.api.api_key:
            raise RuntimeError(
                "tracker.mode=online needs an API key: run `wandb login`, set WANDB_API_KEY, or "
                "keep tracker.mode=offline and upload later with `wandb sync`"
            )
        yield wandb


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
    """Settings: no console output, no system information, no login prompt."""
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
    """Folders of wandb's data that belong to no run: beside the runs, so that copying is enough."""
    return {
        "WANDB_CACHE_DIR": str(home / "cache"),
        "WANDB_DATA_DIR": str(home / "data"),
    }


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Context: set environment variables, and restore the user's afterwards."""
    # An offline run must not send error reports to wandb.
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
