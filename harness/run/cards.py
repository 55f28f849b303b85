"""What the model card of an artifact says besides its files: base, licence, command and figures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from harness.cell.cells import ResolvedCell
from harness.config.schema import ModelConfig
from harness.data.config import CalibConfig, DocumentsConfig
from harness.models.model import StoredModel
from harness.records.record import Metric
from harness.report.columns import ACCURACY
from harness.report.command import in_shell, of_calibration, of_scheme, settings
from harness.report.table import measured
from quant.checkpoint.card import Origin, add_figures, origin_of

# Licences of conf/model that the hub has identifiers for; it calls all others "other".
_ON_THE_HUB = ("apache-2.0", "mit")


def origin(cell: ResolvedCell) -> Origin:
    """What is known of the artifact of a cell before it is made.

    Two cells with one artifact give the same: nothing here depends on names, folders or suites.
    """
    return dataclasses.replace(origin_of_model(cell.stored_model), command=command(cell))


def origin_of_model(model: StoredModel) -> Origin:
    """What is known of anything made of a model: the base on the hub, and its licence."""
    found = origin_of(model.folder, model.config.id)
    if not found.licence and model.config.licence is not None:
        found = dataclasses.replace(found, licence=_licence(model.config.licence))
    return found


def command(cell: ResolvedCell) -> str:
    """The command that makes the artifact of a cell again, with every option of it."""
    choices, solving = cell.choices, cell.choices.solving
    assert solving is not None
    assert choices.scheme is not None
    options = {**dataclasses.asdict(solving.options), **solving.rules.given()}
    words = [
        *_model(cell.model.config),
        f"method={solving.solver.name}",
        *settings("method", {**options, "arithmetic": solving.arithmetic}),
        *of_scheme(choices.scheme.name, cell.keys.semantic["scheme"]),
    ]
    if choices.transforms:
        words.append(f"transform=[{','.join(each.transform.name for each in choices.transforms)}]")
    for each in choices.transforms:
        key = f"transform.{each.transform.name}"
        words += settings(key, dataclasses.asdict(each.options))
    words += _calibration(choices.calibration)
    return in_shell(["bitsweep", "run", *words, f"seed={choices.seed}"])


def write_figures(cell: ResolvedCell) -> None:
    """Put the accuracies that the cell's records hold into the card of its artifact."""
    found = figures(cell)
    if cell.artifact is not None and found:
        add_figures(cell.artifact, found)


def figures(cell: ResolvedCell) -> str:
    """The accuracies that the records of a cell hold, as a Markdown table; "" for none."""
    rows = []
    for each in cell.choices.suites:
        table, record = each.suite.table, cell.find(each.suite.name)
        if table.joins != ACCURACY or record is None:
            continue
        hidden = {column.metric for column in table.columns if not column.on_screen}
        known = {column.metric for column in table.columns}
        rows += [
            _row(metric)
            for metric in record.metrics
            if metric.name not in hidden and (metric.name in known or table.others is not None)
        ]
    if not rows:
        return ""
    return "\n".join(["| measured on | figure | value | of |", "|---|---|---|---|", *rows])


def _row(metric: Metric) -> str:
    percent = metric.unit == "fraction"
    factor, least = (100.0, 1) if percent else (1.0, 2)
    error = None if metric.stderr is None else factor * metric.stderr
    value = measured(factor * metric.value, error, least)
    unit = "%" if percent else metric.unit
    return f"| {metric.task} | {metric.name} | {value} {unit} | {metric.n:,} {metric.n_unit} |"


def _model(model: ModelConfig) -> list[str]:
    """Overrides that choose a model; of a path or a file only the last name."""
    file = model.path or model.file
    if model.id is not None:
        words = ["model=hub", f"model.id={model.id}"]
        words += [] if model.revision is None else [f"model.revision={model.revision}"]
    elif file is not None:
        words = ["model=local", *settings("model", {"path": Path(file).name})]
    else:
        words = [f"model={model.source}"]
    words.append(f"model.dtype={model.dtype}")
    if model.context is not None:
        words.append(f"model.context={model.context}")
    return words


def _calibration(calib: CalibConfig | None) -> list[str]:
    if calib is None:
        return []
    given: dict[str, Any] = {
        "sequences": calib.sequences,
        "length": calib.length,
        "seed": calib.seed,
    }
    if calib.path is not None:
        given["path"] = Path(calib.path).name
    if calib.chat_template:
        given["chat_template"] = True
    standard = dataclasses.asdict(DocumentsConfig())
    documents = dataclasses.asdict(calib.documents)
    changed = {key: value for key, value in documents.items() if value != standard[key]}
    return [
        *of_calibration(calib.name, calib.protocol),
        *settings("calib", given),
        *settings("calib.documents", changed),
    ]


def _licence(name: str) -> dict[str, str]:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return {"license": slug} if slug in _ON_THE_HUB else {"license": "other", "license_name": slug}
