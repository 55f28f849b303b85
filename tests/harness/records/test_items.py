"""Values of windows and documents: packed in a record and read again, or taken from old samples."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.records.items import document_items, make_items, values_of, weights_of
from harness.records.record import CellIdentity, Items, Metric, Record
from harness.records.store import read_record

CELL = CellIdentity(model="tiny", method="rtn", scheme="w4", calibration=None, seed=0)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_values_come_back_in_every_bit(values: list[float]) -> None:
    items = make_items("windows", "ids", values)
    assert values_of(Items.model_validate_json(items.model_dump_json())).tolist() == values
    assert weights_of(items).tolist() == [1.0] * len(values)
    assert "/" not in items.values  # where records are cleaned, it would look like a path


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_answers_take_a_bit_each(right: list[bool]) -> None:
    items = make_items("documents", "ids", right)
    kind, _, packed = items.values.partition(":")
    assert (kind, len(base64.urlsafe_b64decode(packed))) == ("bits", (len(right) + 7) // 8)
    assert values_of(items).tolist() == [float(each) for each in right]


def test_bytes_are_as_the_page_says() -> None:
    items = make_items("windows", "ids", [2.5, -1.0], [3, 258])
    assert base64.urlsafe_b64decode(items.values[3:]) == struct.pack("<2d", 2.5, -1.0)
    assert items.weights is not None
    assert base64.urlsafe_b64decode(items.weights[3:]) == bytes([3, 0, 0, 0, 2, 1, 0, 0])
    assert weights_of(items).tolist() == [3.0, 258.0]
    answers = make_items("documents", "ids", [1, 0, 0, 0, 0, 0, 0, 0, 1])
    assert base64.urlsafe_b64decode(answers.values[5:]) == bytes([0b10000000, 0b10000000])


@pytest.mark.parametrize(
    "values",
    [
        "bits:AAA=",
        "f8:AAAA",
        "f4:AAAA",
        "",
        "f8:" + base64.urlsafe_b64encode(struct.pack("<3d", 1, float("nan"), 2)).decode(),
    ],
)
def test_damaged_values_are_no_record(values: str) -> None:
    with pytest.raises(ValidationError):
        Items(unit="windows", ids="ids", count=3, values=values)


def test_a_figure_that_is_no_mean_of_its_scores_has_no_items() -> None:
    assert document_items("ids", [1.0, 0.0], 0.5, exponential=False) is not None
    assert document_items("ids", [1.0, 0.0], 0.66, exponential=False) is None
    assert document_items("ids", [(1, 0)], 0.5, exponential=False) is None
    assert document_items("ids", [], 0.5, exponential=False) is None
    found = document_items("ids", [-1.0, -3.0], float(np.exp(2.0)), exponential=True)
    assert found is not None
    assert values_of(found).tolist() == [1.0, 3.0]


def older(
    tmp_path: Path, metrics: list[Metric], samples: list[dict[str, Any]], **more: Any
) -> Path:
    """A record of schema version 2 with the samples file beside it."""
    record = Record(
        key="k", cell_key="c", suite="s", status="ok", cell=CELL, metrics=metrics, config={},
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0, samples_file="s.samples.jsonl", **more,
    )  # fmt: skip
    values = record.model_dump()
    values["schema_version"] = 2
    for metric in values["metrics"]:
        del metric["items"]
    (tmp_path / "s.samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    path = tmp_path / "s.json"
    path.write_text(json.dumps(values))
    return path


def figure(name: str, value: float, n: int, unit: str = "fraction", **notes: str) -> Metric:
    return Metric(name=name, task="t", value=value, unit=unit, n=n, n_unit="x", notes=notes)


def test_windows_of_an_older_record_are_those_of_its_samples(tmp_path: Path) -> None:
    samples = [
        {"protocol": "t", "window": 0, "tokens": 4, "nll": 5.25},
        {"protocol": "other", "window": 0, "tokens": 9, "nll": 1.0},
        {"protocol": "t", "window": 1, "tokens": 6, "nll": 7.5},
    ]
    metric = figure("perplexity", float(np.exp(12.75 / 10)), 10, "ppl", token_hash="ab")
    path = older(tmp_path, [metric], samples)
    items = read_record(path).metrics[0].items
    assert items is not None
    assert (items.unit, items.ids, items.exponential) == ("windows", "ab", True)
    assert values_of(items).tolist() == [5.25, 7.5]
    assert weights_of(items).tolist() == [4.0, 6.0]


def test_documents_of_an_older_record_are_those_of_its_samples(tmp_path: Path) -> None:
    samples = [
        {"task": "t", "doc_id": 0, "correct": True, "acc_norm": 0.0, "loglikelihoods": [-1.0]},
        {"task": "t", "doc_id": 1, "correct": False, "acc_norm": 0.0, "loglikelihoods": [-2.0]},
        {"task": "t", "doc_id": 0, "filter": "strict", "exact": 1.0},
        {"task": "t", "doc_id": 1, "filter": "strict", "exact": 1.0},
    ]
    metrics = [
        figure("accuracy", 0.5, 2),
        figure("acc_norm", 0.0, 2),
        figure("target_perplexity", float(np.exp(1.5)), 2, "ppl"),
        figure("exact (strict)", 1.0, 2),
        figure("f1", 0.7, 2),
    ]
    path = older(tmp_path, metrics, samples, inputs={"task:t": "ids"})
    found = [metric.items for metric in read_record(path).metrics]
    values = [None if each is None else values_of(each).tolist() for each in found]
    assert values == [[1.0, 0.0], [0.0, 0.0], [1.0, 2.0], [1.0, 1.0], None]
    assert {each.ids for each in found if each is not None} == {"ids"}


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_an_older_record_without_its_samples_is_read_without_items(
    tmp_path: Path, damage: str
) -> None:
    metric = figure("perplexity", 3.0, 10, "ppl", token_hash="ab")
    path = older(tmp_path, [metric], [{"protocol": "t", "tokens": 10, "nll": 11.0}])
    samples = tmp_path / "s.samples.jsonl"
    if damage == "gone":
        samples.unlink()
    elif damage == "cut":
        samples.write_text('{"protocol": "t", "tok')
    else:
        samples.write_text('{"protocol": "t", "tokens": 9, "nll": 11.0}\n')
    assert read_record(path).metrics == [metric]
