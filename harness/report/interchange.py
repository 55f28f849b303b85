"""Records in the formats of others: `.eval_results` of the Hugging Face Hub, and Every Eval Ever.

    interchange/eval_results/CELL.yaml                              for a model's repository
    interchange/every_eval_ever/data/bitsweep/OWNER/MODEL/UUID.json  schema 0.3.0

A file for every cell with a figure, from its records alone. Formats:
https://github.com/huggingface/hub-docs (eval_results.yaml) and
https://github.com/evaleval/every_eval_ever (eval.schema.json).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.records.record import QUANTIZATION, Metric, Record
from harness.records.store import KEY_DIGITS, cell_name, file_name
from harness.report.command import command
from harness.report.frame import told_apart
from harness.report.tables import NO_SPECS
from harness.suites.base import Suite
from harness.suites.find import find_table, is_timing

if TYPE_CHECKING:
    from huggingface_hub import EvalResultEntry

SCHEMA = "0.3.0"  # of Every Eval Ever
NOBODY = "local"  # the owner of a model that is in no repository
# "OWNER/NAME@REVISION FILE" or "OWNER/NAME@REVISION CONFIG": what a figure was measured on.
_ON_THE_HUB = re.compile(r"([\w.-]+/[\w.-]+)@(\w+)(?: (.+))?")


def interchange_files(
    records: Iterable[Record], suites: Mapping[str, Suite] = NO_SPECS
) -> tuple[dict[str, bytes], list[str]]:
    """Files by their paths in a report, and sentences on figures that a format cannot hold.

    suites  specs by name, for suites that are not built in.
    """
    files: dict[str, bytes] = {}
    without = 0
    for name, cell in _cells(records).items():
        figures = _figures(cell, suites)
        if not figures:
            continue
        entries = eval_results(figures, suites)
        without += not entries
        if entries:
            files[f"interchange/eval_results/{name}.yaml"] = _yaml(entries)
        made = every_eval_ever(cell, figures)
        folder = "/".join(map(file_name, made["model_info"]["id"].split("/", 1)))
        place = f"interchange/every_eval_ever/data/bitsweep/{folder}"
        text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        files[f"{place}/{_uuid(cell[0].cell_key)}.json"] = text.encode()
    said = [
        f"{without} {'cell has' if without == 1 else 'cells have'} no figure on a dataset of the "
        "hub, so there is no .eval_results file of them: the format asks for the dataset's id."
    ]
    return files, said if without else []


def eval_results_file(
    records: Iterable[Record], suites: Mapping[str, Suite] = NO_SPECS
) -> bytes | None:
    """The .eval_results file of the records of one artifact; None without a figure for it."""
    figures = [each for cell in _cells(records).values() for each in _figures(cell, suites)]
    entries = eval_results(figures, suites)
    return _yaml(entries) if entries else None


def _figures(cell: Iterable[Record], suites: Mapping[str, Suite]) -> list[tuple[Record, Metric]]:
    """The figures of a cell that are no times, each with its record."""
    return [
        (record, metric)
        for record in cell
        if record.suite != QUANTIZATION and not is_timing(record.suite, suites)
        for metric in record.metrics
    ]


def _cells(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The newest records of every stage, by a name of their cell; without what failed."""
    newest: dict[tuple[str, str], Record] = {}
    for record in sorted(told_apart(records), key=lambda each: (each.started_at, each.key)):
        if record.status == "ok":
            newest[record.cell_key, record.suite] = record
    found: dict[str, list[Record]] = {}
    for (key, _), record in sorted(newest.items()):
        found.setdefault(f"{cell_name(record.cell)}-{key[:KEY_DIGITS]}", []).append(record)
    return dict(sorted(found.items()))


def eval_results(
    figures: Sequence[tuple[Record, Metric]], suites: Mapping[str, Suite] = NO_SPECS
) -> list[EvalResultEntry]:
    """The entries of an .eval_results file: one for each task on a dataset of the hub.

    An entry has one value, that of the first column of its suite; the notes say of what.
    """
    from huggingface_hub import EvalResultEntry

    found: dict[tuple[str, str], tuple[int, EvalResultEntry]] = {}
    for record, metric in figures:
        data = _dataset(metric)
        if data is None:
            continue
        repository, revision, part = data
        columns = [column.metric for column in find_table(record.suite, suites).columns]
        rank = columns.index(metric.name) if metric.name in columns else len(columns)
        entry = EvalResultEntry(
            dataset_id=repository,
            task_id=part if part and " " not in part and "." not in part else metric.task,
            value=metric.value,
            dataset_revision=revision,
            date=record.started_at,
            notes=_notes(record, metric),
        )
        key = (record.suite, metric.task)
        if key not in found or rank < found[key][0]:
            found[key] = (rank, entry)
    return [entry for _, (_, entry) in sorted(found.items())]


def _yaml(entries: list[EvalResultEntry]) -> bytes:
    import yaml
    from huggingface_hub import eval_result_entries_to_yaml

    made = eval_result_entries_to_yaml(entries)
    text: str = yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=100)
    return text.encode()


def _notes(record: Record, metric: Metric) -> str:
    """What was measured, of which weights, and on how much."""
    cell = record.cell
    label = " ".join(filter(None, (cell.label or cell.method, cell.options)))
    weights = "full precision" if cell.full_precision else f"{label} {cell.scheme}"
    parts = [f"{metric.name.replace('_', ' ')} ({metric.unit})", weights]
    parts.append(f"{metric.n} {metric.n_unit}")
    if metric.stderr is not None:
        parts.append(f"standard error {metric.stderr:.4g}")
    for name in ("num_fewshot", "windows", "limit"):
        if metric.notes.get(name):
            parts.append(f"{name} {metric.notes[name]}")
    return "; ".join(parts)


def _dataset(metric: Metric) -> tuple[str, str | None, str | None] | None:
    """Repository, revision, and file or part of a figure's data; None if it is not on the hub."""
    for name in ("dataset", "text"):
        found = _ON_THE_HUB.fullmatch(metric.notes.get(name, ""))
        if found:
            revision = found[2] if re.fullmatch(r"[0-9a-f]{40}", found[2]) else None
            return found[1], revision, found[3]
    return None


def every_eval_ever(
    cell: Sequence[Record], figures: Sequence[tuple[Record, Metric]]
) -> dict[str, Any]:
    """The record of a cell in the schema of Every Eval Ever.

    How the weights were quantized is in model_info.additional_details, whose values are texts.
    """
    first = min(cell, key=lambda each: each.started_at)
    last = max(each.start for each in cell)
    model = _model_info(cell)
    packages = first.environment.get("packages") or {}
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"bitsweep/{model['id'].replace('/', '_')}/{first.cell_key}",
        "evaluation_timestamp": first.started_at,
        "retrieved_timestamp": str(last.timestamp()),
        "source_metadata": {
            "source_name": "Bitsweep",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
            "additional_details": {"cell_key": first.cell_key, "command": command(cell)},
        },
        "eval_library": {
            "name": "bitsweep",
            "version": str(packages.get("bitsweep", "unknown")),
            "additional_details": {name: str(value) for name, value in sorted(packages.items())},
        },
        "model_info": model,
        "evaluation_results": [_result(record, metric) for record, metric in figures],
    }


def _model_info(cell: Sequence[Record]) -> dict[str, Any]:
    identity = next((each.cell for each in cell if each.cell.bits_per_weight), cell[0].cell)
    config = cell[0].config.get("model") or {}
    base = str(config.get("id") or f"{NOBODY}/{identity.model}")
    owner, _, name = base.rpartition("/")
    details = {"deployment_type": "self_deployed", "model_availability": "open_weights"}
    details |= {"base_model": base, "dtype": str(config.get("dtype"))}
    if config.get("revision"):
        details["base_model_revision"] = str(config["revision"])
    if not identity.full_precision:
        name = f"{name}-{identity.method}-{identity.scheme}"
        details |= _quantization(cell, identity.bits_per_weight)
    return {
        "name": name,
        "id": f"{owner or NOBODY}/{name}",
        "developer": owner or NOBODY,
        "inference_engine": {
            "name": "bitsweep",
            "version": str((cell[0].environment.get("packages") or {}).get("bitsweep", "unknown")),
        },
        "additional_details": details,
    }


def _quantization(cell: Sequence[Record], bits_per_weight: float | None) -> dict[str, str]:
    """How weights were quantized, as texts: names begin with quantization_."""
    record, identity = cell[0], cell[0].cell
    found: dict[str, Any] = {
        "method": identity.method,
        "method_label": identity.label,
        "method_options": identity.options,
        "scheme": identity.scheme,
        "bits_per_weight": bits_per_weight,
        "coverage": identity.coverage,
        "head": identity.head,
        **({} if identity.embeddings is None else {"embeddings": identity.embeddings}),
        "calibration": identity.calibration,
        "seed": identity.seed,
        "artifact_sha256": next(
            (r.inputs["artifact"] for r in cell if "artifact" in r.inputs), None
        ),
    }
    for part in ("scheme", "method", "calib"):
        for key, value in (record.config.get(part) or {}).items():
            found.setdefault(f"{part}_{key}", value)
    return {
        f"quantization_{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in found.items()
        if value is not None
    }


def _result(record: Record, metric: Metric) -> dict[str, Any]:
    share = metric.unit == "fraction"
    data = _dataset(metric)
    source: dict[str, Any] = {"dataset_name": metric.task, "source_type": "other"}
    if data is not None:
        repository, revision, part = data
        details = {"revision": revision, "part": part}
        source |= {"source_type": "hf_dataset", "hf_repo": repository}
        source["additional_details"] = {key: value for key, value in details.items() if value}
    uncertainty: dict[str, Any] = {}
    if metric.stderr is not None:
        error = {"value": metric.stderr, "method": metric.notes.get("stderr", "analytic")}
        uncertainty["standard_error"] = error
    if metric.items is not None or metric.n_unit == "documents":
        uncertainty["num_samples"] = metric.n if metric.items is None else metric.items.count
    return {
        "evaluation_result_id": f"{record.key}:{metric.task}:{metric.name}",
        "evaluation_name": metric.task,
        "source_data": source,
        "evaluation_timestamp": record.started_at,
        "metric_config": {
            "evaluation_description": f"{metric.name.replace('_', ' ')} on {metric.task}",
            "metric_id": metric.name,
            "metric_name": metric.name.replace("_", " "),
            "metric_unit": "proportion" if share else metric.unit,
            "lower_is_better": not metric.higher_is_better,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0 if share else "Infinity",
            "additional_details": {"suite": record.suite, **metric.notes},
        },
        "score_details": {
            "score": metric.value,
            "details": {"n": str(metric.n), "n_unit": metric.n_unit},
            **({"uncertainty": uncertainty} if uncertainty else {}),
        },
    }


def _uuid(cell_key: str) -> str:
    """A UUID of version 4's form, always the same for a cell."""
    return str(uuid.UUID(hex=cell_key[:32], version=4))
