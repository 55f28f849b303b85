"""The values of single windows and documents behind a figure (record.Items): packed and read.

A figure is r = sum(values) / sum(weights) over its units, or exp(r): an accuracy is the mean of 0
and 1, a perplexity the exponential of summed losses over scored tokens.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records.record import Items, Metric, Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

WINDOWS, DOCUMENTS = "windows", "documents"
TARGET_PERPLEXITY = "target_perplexity"  # exp of the mean negative log-likelihood of the targets


def make_items(
    unit: str,
    ids: str,
    values: Sequence[float],
    weights: Sequence[int] | None = None,
    exponential: bool = False,
) -> Items:
    """Pack the values of units in order; all fields as in Items.

    values  exactly as given: 0 and 1 alone take one bit each, other numbers 8 bytes.
    """
    packed = None if weights is None else struct.pack(f"<{len(weights)}I", *weights)
    return Items(
        unit=unit,
        ids=ids,
        count=len(values),
        values=_packed(values),
        weights=None if packed is None else _written("u4", packed),
        exponential=exponential,
    )


def document_items(
    ids: str, scores: Sequence[Any], value: float, exponential: bool
) -> Items | None:
    """The items of a task's figure; None if it is not the one that the scores of documents make.

    An aggregate such as F1 over all documents is no mean of scores, so documents cannot be drawn.

    exponential  the scores are log-likelihoods, and the figure is exp(-mean).
    """
    if not scores or not all(isinstance(score, (int, float)) for score in scores):
        return None
    if exponential and value <= 0:
        return None
    values = [-float(score) if exponential else float(score) for score in scores]
    mean = math.fsum(values) / len(values)
    stated = math.log(value) if exponential else value
    if not math.isclose(stated, mean, rel_tol=1e-9, abs_tol=1e-9):
        return None
    return make_items(DOCUMENTS, ids, values, exponential=exponential)


def values_of(items: Items) -> Values:
    """The values as float64 [count]."""
    return _unpacked(items.values, items.count)


def weights_of(items: Items) -> Values:
    """The weights as float64 [count]; 1 where none are kept."""
    import numpy as np

    return np.ones(items.count) if items.weights is None else _unpacked(items.weights, items.count)


def _packed(values: Sequence[float]) -> str:
    if all(value in (0, 1) for value in values):
        digits = "".join("1" if value else "0" for value in values)
        size = (len(digits) + 7) // 8
        return _written("bits", int(digits.ljust(8 * size, "0"), 2).to_bytes(size, "big"))
    return _written("f8", struct.pack(f"<{len(values)}d", *values))


def _written(kind: str, data: bytes) -> str:
    # Without "/", which would look like a path where records are cleaned of local paths.
    return f"{kind}:{base64.urlsafe_b64encode(data).decode()}"


def _unpacked(text: str, count: int) -> Values:
    import numpy as np

    kind, _, packed = text.partition(":")
    data = base64.urlsafe_b64decode(packed)
    if kind == "bits":
        return np.unpackbits(np.frombuffer(data, np.uint8), count=count).astype(np.float64)
    return np.frombuffer(data, {"u4": "<u4", "f8": "<f8"}[kind]).astype(np.float64)


def with_items(record: Record, folder: Path) -> Record:
    """A record of schema version 2 with the items that the samples file beside it gives.

    Unchanged if that file is not here (kept elsewhere, or never stored) or cannot be read.
    """
    if record.samples_file is None:
        return record
    try:
        text = (folder / record.samples_file).read_text(encoding="utf-8")
        samples = [json.loads(line) for line in text.splitlines()]
        metrics = [_completed(metric, record, samples) for metric in record.metrics]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return record
    return record.model_copy(update={"metrics": metrics})


def _completed(metric: Metric, record: Record, samples: Sequence[Mapping[str, Any]]) -> Metric:
    """The metric with the items that samples in the form of version 2 hold for it."""
    if metric.name == "perplexity" and "token_hash" in metric.notes:
        of_text = [each for each in samples if each.get("protocol") == metric.task]
        losses = [float(each["nll"]) for each in of_text]
        tokens = [int(each["tokens"]) for each in of_text]
        if sum(tokens) != metric.n:
            return metric
        found = make_items(WINDOWS, metric.notes["token_hash"], losses, tokens, exponential=True)
        return metric.model_copy(update={"items": found})
    ids = record.inputs.get(f"task:{metric.task}")
    scores = list(_scores(metric.name, [one for one in samples if one.get("task") == metric.task]))
    if ids is None or len(scores) != metric.n:
        return metric
    made = document_items(ids, scores, metric.value, metric.name == TARGET_PERPLEXITY)
    return metric.model_copy(update={"items": made})


def _scores(name: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """The scores of a task's metric by document; none for a metric that is no mean of scores."""
    name, _, kind = name.removesuffix(")").partition(" (")
    for one in samples:
        if one.get("filter", "") != kind:
            continue
        if name == TARGET_PERPLEXITY:
            yield float(one["loglikelihoods"][0])
        elif name == "accuracy":
            yield float(one["correct"])
        elif name in one:
            yield float(one[name])
