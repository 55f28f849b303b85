"""Records as one tidy pandas frame: one row per metric, and one per failed stage."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from harness.records.record import ABSENT, NOT_AVAILABLE, CellIdentity, LayerReport, Metric, Record
from quant.transforms.notes import read_note

if TYPE_CHECKING:
    import pandas as pd

MODEL_DIGITS = 8  # of its hash, after a name that several models share
QUANTILES = ("p10", "p50", "p90", "p99")
# Columns for rows that metrics.csv leaves out.
INTERNAL = (
    "label",
    "full_precision",
    "cell_config",
    "artifact",
    "transforms",
    "coverage",
    "head",
    "mixture",
    "parameters",
    "made_of",
    "weight_errors",
    "items",
    "recipe",
    "text",
    "text_size",
    "calibration_tokens",
)

COLUMNS = (
    # what was measured on: the cell
    "model",
    "method",
    "options",
    "scheme",
    "dtype",
    "bits",
    "group_size",
    "bits_per_weight",
    "calibration",
    "calibrated_on",
    "seed",
    # what was measured
    "suite",
    "task",
    "metric",
    "value",
    "stderr",
    "unit",
    "n",
    "n_unit",
    "token_hash",
    "higher_is_better",
    *QUANTILES,
    # how to read it
    "kernel",
    "fallbacks",
    "status",
    "error",
    "notes",
    # where it is from
    "seconds",
    "started_at",
    "key",
    "cell_key",
    *INTERNAL,
)

FLOAT_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}


NUMBERS = ("bits", "group_size", "bits_per_weight", "value", "stderr", "parameters", *QUANTILES)
ORDER = ("model", "suite", "task", "metric", "cell_key", "started_at", "key")
Entry = dict[str, Any]


def from_records(records: Iterable[Record]) -> pd.DataFrame:
    """One row per metric, with the columns COLUMNS; a failed stage has a row without a metric.

    A figure that several records of a cell have (the same suite with other settings) appears once
    per record. Different models of one name get different names. Missing numbers are NaN, missing
    texts None. Rows are sorted, so the order of the records does not matter.
    """
    import pandas as pd

    entries = entries_of(records)
    columns: dict[str, Any] = {name: [each[name] for each in entries] for name in COLUMNS}
    # As objects, a text that many rows of a cell share is there once.
    columns |= {name: pd.Series(columns[name], dtype=object) for name in INTERNAL}
    frame = pd.DataFrame(columns)
    frame[list(NUMBERS)] = frame[list(NUMBERS)].astype("float64")
    return frame


def entries_of(records: Iterable[Record]) -> list[Entry]:
    """The rows of `from_records` as dictionaries, None for what is missing; without pandas."""
    found = [entry for record in told_apart(records) for entry in _rows(record)]
    return sorted(found, key=_place)


def _place(entry: Entry) -> tuple[str, ...]:
    names = _names_in_order(entry)
    return names if None not in names else tuple([name or "" for name in names])


_names_in_order = itemgetter(*ORDER)


CSV_COLUMNS = tuple(name for name in COLUMNS if name not in INTERNAL)


def csv_lines(entries: Iterable[Entry]) -> list[tuple[Any, ...]]:
    """What `metrics_csv` writes of entries, whatever becomes of them."""
    return list(map(itemgetter(*CSV_COLUMNS), entries))


def metrics_csv(lines: Sequence[tuple[Any, ...]]) -> str:
    """All metrics of all records as CSV, one per line, without configurations."""
    place = CSV_COLUMNS.index("n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    if any(line[place] is None for line in lines):  # then all are floats, as pandas has them
        writer.writerows(map(partial(_as_float, place), lines))
    else:
        writer.writerows(lines)
    return buffer.getvalue()


def _as_float(place: int, line: tuple[Any, ...]) -> tuple[Any, ...]:
    number = line[place]
    return line if number is None else (*line[:place], float(number), *line[place + 1 :])


def told_apart(records: Iterable[Record]) -> list[Record]:
    """The records, with part of the model's hash added to names that several models share."""
    records = list(records)
    known: dict[str, set[str]] = {}
    for record in records:
        if "model" in record.inputs:
            known.setdefault(record.cell.model, set()).add(record.inputs["model"])
    several = {name for name, hashes in known.items() if len(hashes) > 1}
    return [_renamed(each) if each.cell.model in several else each for each in records]


def _renamed(record: Record) -> Record:
    name = f"{record.cell.model}-{record.inputs.get('model', '')[:MODEL_DIGITS]}".removesuffix("-")
    return record.model_copy(update={"cell": record.cell.model_copy(update={"model": name})})


def _rows(record: Record) -> list[Entry]:
    shared = _NOTHING | {
        "model": record.cell.model,
        "method": record.cell.method,
        "options": record.cell.options or "",
        "scheme": record.cell.scheme,
        "dtype": _section(record, "model").get("dtype"),
        "bits": _number(_section(record, "scheme").get("bits")),
        "group_size": _number(_section(record, "scheme").get("group_size")),
        "bits_per_weight": _number(_bits_per_weight(record)),
        "calibration": record.cell.calibration,
        "calibrated_on": _calibrated_on(record),
        "seed": record.cell.seed,
        "suite": record.suite,
        "fallbacks": _fallbacks(record.layers),
        "status": record.status,
        "error": _error(record),
        "seconds": record.seconds,
        "started_at": record.started_at,
        "key": record.key,
        "cell_key": record.cell_key,
        "label": record.cell.label,
        "full_precision": record.cell.full_precision,
        "cell_config": cell_config(record),
        "artifact": record.inputs.get("artifact"),
        "transforms": "; ".join(partly_applied(record.layers)),
        "coverage": partly_covered(record.cell),
        "head": outside_note(record.cell),
        "mixture": record.cell.mixture or "",
        "parameters": _number(record.config.get("parameters")),
        "made_of": _made_of(record),
        "weight_errors": by_layer(record.layers),
        "recipe": recipe(record),
        "text": _text(record),
        "text_size": _text_size(record),
        "calibration_tokens": max((layer.tokens for layer in record.layers), default=None),
    }
    figures = [shared | _metric(metric, record) for metric in record.metrics]
    return [shared, *figures] if record.status == "failed" or not figures else figures


_NOTHING = dict.fromkeys(COLUMNS)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


NAMED_LAYERS = 3  # with one fallback, in a footnote
TEXT_SIZE = ("sequences", "length")  # keys of a calibration that say how much of its text is read
NO_TEXT_OF_ITS_OWN = (*TEXT_SIZE, "name", "seed")


def _text(record: Record) -> str | None:
    """Which calibration text a record's weights saw, not how much of it, as JSON; None without."""
    if record.cell.calibration is None:
        return None
    said = _section(record, "calib")
    found = {key: value for key, value in said.items() if key not in NO_TEXT_OF_ITS_OWN}
    return _sorted_json(found | _file_of_text(record))


def _text_size(record: Record) -> str | None:
    """How much of the calibration text, as JSON; None without one."""
    if record.cell.calibration is None:
        return None
    return json.dumps({key: _section(record, "calib").get(key) for key in TEXT_SIZE})


def _file_of_text(record: Record) -> dict[str, str]:
    """The hash of a local calibration file: records name it without its folder."""
    if _section(record, "calib").get("path") is None or "calibration" not in record.inputs:
        return {}
    return {"text": record.inputs["calibration"]}


def _calibrated_on(record: Record) -> str | None:
    """The calibration's text and its windows, such as "c4-train 128 x 2048"; None without one."""
    text = _section(record, "calib")
    if record.cell.calibration is None or "protocol" not in text:
        return None
    length = text.get("length")  # None: whole documents
    size = "" if length is None else f" x {length}"
    return f"{text['protocol']} {text.get('sequences')}{size}"


def _metric(metric: Metric, record: Record) -> dict[str, Any]:
    found = {
        "task": metric.task,
        "metric": metric.name,
        "value": metric.value,
        "stderr": metric.stderr,
        "unit": metric.unit,
        "n": metric.n,
        "n_unit": metric.n_unit,
        "token_hash": metric.notes.get("token_hash"),
        "higher_is_better": metric.higher_is_better,
        "kernel": metric.notes.get("kernel") or record.environment.get("kernel"),
        "items": metric.items,
        "notes": _joined(tuple(metric.notes.items())),
    }
    if metric.quantiles:
        found |= {name: metric.quantiles.get(name) for name in QUANTILES}
    return found


@lru_cache(maxsize=4096)  # the same figure of many cells has the same notes
def _joined(notes: tuple[tuple[str, str], ...]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in sorted(notes))


def partly_applied(layers: Sequence[LayerReport]) -> list[str]:
    """A sentence for each transform that was not applied to some layers: how many, and why."""
    found: dict[str, Counter[str | None]] = {}
    for name, why in (read_note(note) for layer in layers for note in layer.transforms):
        found.setdefault(name, Counter())[why] += 1
    said = []
    for name, reasons in found.items():
        total, applied = reasons.total(), reasons.pop(None, 0)
        rest = [f"not to {count}, because {why}" for why, count in sorted(reasons.items())]
        if rest:
            said.append("; ".join([f"{name}: applied to {applied} of {total} layers", *rest]))
    return said


def _fallbacks(layers: Sequence[LayerReport]) -> str:
    """The deviations that the rules allowed, with their layers; of many layers, the first."""
    names: dict[str, list[str]] = {}
    for layer in layers:
        if layer.fallback:
            names.setdefault(layer.fallback, []).append(layer.name)
    said = []
    for why, found in names.items():
        if len(found) > NAMED_LAYERS:
            found = [f"{found[0]} and {len(found) - 1} more layers"]
        said += [f"{name}: {why}" for name in found]
    return "; ".join(said)


def partly_covered(cell: CellIdentity) -> str:
    """A sentence on matrices of the blocks that are not quantized; "" if none or unknown."""
    if not cell.outside or cell.coverage is None:
        return ""
    return (
        f"{100 * cell.coverage:.1f} % of the weights of the blocks' matrices are quantized; not "
        f"{', '.join(cell.outside)}"
    )


def outside_note(cell: CellIdentity) -> str:
    """A sentence on a quantized head and quantized embeddings; "" if neither is quantized."""
    found = {"head": cell.head, "embeddings": cell.embeddings}
    said = [f"{what}: {how}" for what, how in found.items() if how]
    return "; ".join([*said, "counted in bits/weight"]) if said else ""


def by_layer(layers: Sequence[LayerReport]) -> str:
    """The relative errors of layers by name, as JSON; "" without layers."""
    return json.dumps({each.name: each.weight_error for each in layers}) if layers else ""


def _made_of(record: Record) -> str:
    """What the weights were in the GGUF file that they came from, as JSON; "" without one."""
    found = _section(record, "model").get("made_of")
    return json.dumps(found) if found else ""


def _section(record: Record, name: str) -> dict[str, Any]:
    section = record.config.get(name)
    return section if isinstance(section, dict) else {}


def _bits_per_weight(record: Record) -> float | None:
    """Bits per weight of the record; in full precision, the bits of the dtype."""
    if record.cell.bits_per_weight is not None or not record.cell.full_precision:
        return record.cell.bits_per_weight
    return FLOAT_BITS.get(str(_section(record, "model").get("dtype")))


def _error(record: Record) -> str | None:
    if record.error is None:
        return None
    if record.error.type == ABSENT:
        return f"{NOT_AVAILABLE}: {record.error.message}"
    return f"{record.error.stage}: {record.error.type}: {record.error.message}"


def cell_config(record: Record) -> str:
    """The configuration of a cell without its seeds, as JSON, to distinguish cells of one name."""
    parts = _parts(record, "calib")
    if isinstance(parts.get("calib"), dict):
        parts["calib"] = {key: value for key, value in parts["calib"].items() if key != "seed"}
        parts["calib"] |= _file_of_text(record)
    return _sorted_json(parts)


def recipe(record: Record) -> str:
    """The configuration of a cell without seeds and calibration text, as JSON."""
    return _sorted_json(_parts(record))


_sorted_json = json.JSONEncoder(sort_keys=True, default=str).encode  # one for all records


def _parts(record: Record, *more: str) -> dict[str, Any]:
    names = ("model", "method", "transform", "scheme", "checkpoint", "code", *more)
    return {name: record.config[name] for name in names if name in record.config}
