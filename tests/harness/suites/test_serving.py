"""Serving memory from figures of records, in hand-made arithmetic; nothing is run."""

import pytest

from harness.records.record import Metric
from harness.report import from_records
from harness.report.rows import Row, read_rows
from harness.report.serving import Serving
from harness.suites.serving import serving_of
from tests.harness.report.conftest import make_record

TASK = "prompt100_decode21"


def metric(name: str, value: float, task: str = "model", **notes: str) -> Metric:
    said = {key.replace("_", " "): text for key, text in notes.items()}
    return Metric(name=name, task=task, value=value, unit="bytes", n=1, n_unit="models", notes=said)


def row(*metrics: Metric, method: str = "rtn", scheme: str = "w4", config: object = None) -> Row:
    record = make_record(method, scheme, "latency", metrics=list(metrics), config=config or {})
    (found,) = read_rows(from_records([record])).rows
    return found


def newer(*more: Metric) -> Row:
    return row(
        metric("weight_bytes", 3000.0),
        metric("weight_count", 4000.0),
        metric("bytes_per_token", 9e9, TASK, KV_cache="12100"),
        metric("workspace_bytes", 700.0, TASK),
        metric("cache_bytes_per_position", 10.0, "all positions", positions="512"),
        metric("cache_bytes_per_position", 4.0, "window:50", positions="512"),
        metric("cache_state_bytes", 30.0, positions="512"),
        *more,
    )


def test_weights_cache_and_workspace_add_up() -> None:
    found = serving_of(newer())
    assert found is not None
    assert found.cache_at(20) == 30 + 20 * 10 + 20 * 4
    assert found.cache_at(200) == 30 + 200 * 10 + 50 * 4
    assert found.total(200) == 3000 + 2230 + 700
    assert found.bits_per_weight == 8 * 3000 / 4000
    assert (found.positions, found.workspace_at, found.timed, found.said) == (512, 100, 121, "")


def test_the_longest_prompt_counts() -> None:
    longer = "prompt900_decode1"
    found = serving_of(
        newer(
            metric("bytes_per_token", 9e9, longer, KV_cache="1"),
            metric("workspace_bytes", 5000.0, longer),
        )
    )
    assert found is not None
    assert (found.workspace, found.workspace_at) == (5000.0, 900)


def test_a_model_that_nothing_bounds_has_no_longest_context() -> None:
    found = serving_of(
        row(
            metric("weight_bytes", 3000.0),
            metric("bytes_per_token", 9e9, TASK, KV_cache="12100"),
            metric("workspace_bytes", 700.0, TASK),
            metric("cache_state_bytes", 30.0, positions="unbounded"),
        )
    )
    assert found == Serving(3000.0, 700.0, 100, (), 30.0, 121)
    assert found.bits_per_weight is None


@pytest.mark.parametrize(
    ("mode", "positions"), [("static cache, CUDA graph", 128), ("fused step", 111)]
)
def test_an_older_record_gives_a_cache_to_lengthen(mode: str, positions: int) -> None:
    """Buffers have room for whole 16s; a growing cache was recorded with its mean length, 111."""
    found = serving_of(
        row(
            metric("weight_bytes", 3000.0),
            metric("baseline_weight_bytes", 16000.0),
            metric("bytes_per_token", 9e9, TASK, KV_cache=str(10 * positions)),
            metric("decode_ms", 5.0, TASK, decode_mode=mode),
            metric("working_memory_bytes", 1e9, TASK),
        )
    )
    assert found is not None
    assert found.cache_at(1000) == pytest.approx(10000)
    assert found.workspace == 0
    assert "its workspace is not known" in found.said
    assert found.weight_count == 4000  # of float32, by the bytes of full precision


def test_full_precision_of_an_older_record_counts_its_own_weights() -> None:
    found = serving_of(
        row(
            metric("weight_bytes", 16000.0),
            metric("bytes_per_token", 9e9, TASK, KV_cache="1280"),
            metric("decode_ms", 5.0, TASK, decode_mode="static cache, eager"),
            method="none",
            scheme="w16",
            config={"model.dtype": "bfloat16"},
        )
    )
    assert found is not None
    assert found.weight_count == 8000
    assert found.bits_per_weight == 16


def test_rows_that_do_not_say_have_none() -> None:
    assert serving_of(row(metric("weight_bytes", 3000.0))) is None
    cacheless = row(
        metric("weight_bytes", 3000.0),
        metric("bytes_per_token", 9e9, TASK, KV_cache="0"),
        metric("workspace_bytes", 700.0, TASK),
    )
    assert serving_of(cacheless) is None
