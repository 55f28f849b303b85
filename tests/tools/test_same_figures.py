"""The comparison of two commits' figures: to the last bit, timings aside, nothing lost."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools import same_figures
from tools.same_figures import compare, figures

PERPLEXITY = {
    "name": "perplexity",
    "task": "documents",
    "value": 18.945,
    "unit": "ppl",
    "n": 900,
    "n_unit": "tokens",
    "stderr": 0.5,
    "higher_is_better": False,
    "quantiles": {"p50": 0.25},
    "notes": {},
}
LAYER = {"name": "blocks.0.q_proj", "block": 0, "loss": 1.5, "weight_error": 0.25, "seconds": 0.1}
CELL = "run/tiny gptq w4 s0"


def record(suite: str, metrics: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "key": "1" * 64,
        "cell_key": "2" * 64,
        "suite": suite,
        "status": "ok",
        "cell": {
            "model": "tiny",
            "method": "gptq",
            "scheme": "w4",
            "calibration": "documents",
            "seed": 0,
            "bits_per_weight": 4.25,
        },
        "metrics": [PERPLEXITY | metric for metric in metrics],
        "layers": [LAYER],
        "error": None,
        "config": {"method": {"damping": 0.01}},
        "inputs": {"artifact": "3" * 64},
        "environment": {"commit": "now"},
        "started_at": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "peak_memory_bytes": 1000,
        "samples_file": None,
    } | changed


@pytest.fixture
def taken(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """taken(record, ...): the figures of these records, from files."""
    count = 0

    def write(*records: dict[str, Any]) -> dict[str, Any]:
        nonlocal count
        count += 1
        folder = tmp_path / str(count) / "run" / "cells" / "tiny-gptq-w4-s0-222222222222"
        folder.mkdir(parents=True)
        for number, each in enumerate(records):
            (folder / f"{each['suite']}-{number}.json").write_text(json.dumps(each))
        return figures(tmp_path / str(count))

    return write


def test_a_value_that_differs_in_the_last_bit_is_found(taken: Callable[..., Any]) -> None:
    value = math.nextafter(18.945, 19)
    before = taken(record("perplexity", [{}]))
    after = taken(record("perplexity", [{"value": value}]))
    assert compare(before, after) == [
        f"{CELL}/perplexity/metrics/perplexity documents/value: 18.945 -> {value!r}"
    ]
    assert compare(before, before) == []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"key": "9" * 64}, "key"),
        ({"cell_key": "9" * 64}, "cell_key"),
        ({"status": "failed"}, "status"),
        ({"inputs": {"artifact": "9" * 64}}, "inputs/artifact"),
        ({"layers": [LAYER | {"loss": 1.25}]}, "layers/blocks.0.q_proj/loss"),
        ({"metrics": [PERPLEXITY | {"n": 901}]}, "metrics/perplexity documents/n"),
        ({"metrics": [PERPLEXITY | {"stderr": None}]}, "metrics/perplexity documents/stderr"),
        (
            {"metrics": [PERPLEXITY | {"quantiles": {"p50": -0.25}}]},
            "metrics/perplexity documents/quantiles/p50",
        ),
    ],
)
def test_every_kind_of_figure_is_compared(
    taken: Callable[..., Any], changed: dict[str, Any], what: str
) -> None:
    before = record("perplexity", [{}])
    (line,) = compare(taken(before), taken(before | changed))
    assert line.startswith(f"{CELL}/perplexity/{what}: ")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("seconds", "s"),
        ("decode_ms", "ms"),
        ("decode_tokens_per_s", "tokens/s"),
        ("decode_bandwidth", "GB/s"),
        ("decode_speedup", "ratio"),
        ("baseline_roofline_share", "fraction"),
        ("peak_memory", "bytes"),
        ("working_memory_bytes", "bytes"),
    ],
)
def test_clocks_and_the_memory_of_a_process_are_ignored(
    taken: Callable[..., Any], name: str, unit: str
) -> None:
    first = {"name": name, "unit": unit}
    later = first | {"value": 7.0, "stderr": 0.1, "quantiles": {"p50": 7.0}}
    wall = {"seconds": 9.0, "started_at": "2026-01-02T00:00:00+00:00", "peak_memory_bytes": 2000}
    layers = {"layers": [LAYER | {"seconds": 0.9}]}
    before = taken(record("latency", [first]))
    assert compare(before, taken(record("latency", [later], **wall, **layers))) == []


def test_a_timing_that_is_gone_is_found(taken: Callable[..., Any]) -> None:
    timing = {"name": "decode_ms", "unit": "ms"}
    before, after = taken(record("latency", [timing])), taken(record("latency", []))
    assert compare(before, after) == [
        f"{CELL}/latency/metrics/decode_ms documents: there -> missing"
    ]


@pytest.mark.parametrize(
    ("name", "unit"),
    [("weight_bytes", "bytes"), ("weight_error", "ratio"), ("accuracy", "fraction")],
)
def test_figures_in_the_units_of_timings_stay(
    taken: Callable[..., Any], name: str, unit: str
) -> None:
    first = {"name": name, "unit": unit}
    after = taken(record("latency", [first | {"value": 7.0}]))
    (line,) = compare(taken(record("latency", [first])), after)
    assert line.endswith("/value: 18.945 -> 7.0")


def test_missing_and_additional_records_are_found(taken: Callable[..., Any]) -> None:
    both = taken(record("perplexity", [{}]), record("divergence", [{}]))
    one = taken(record("perplexity", [{}]))
    assert compare(both, one) == [f"{CELL}/divergence: there -> missing"]
    assert compare(one, both) == [f"{CELL}/divergence: missing -> there"]


def test_two_records_of_one_name_are_refused(taken: Callable[..., Any]) -> None:
    """Only one of them would be compared."""
    with pytest.raises(SystemExit, match=f"{CELL}/perplexity is there twice"):
        taken(record("perplexity", [{}]), record("perplexity", [{}], key="9" * 64))


def test_announced_differences_are_allowed(taken: Callable[..., Any]) -> None:
    before = taken(record("perplexity", [{}]))
    after = taken(record("perplexity", [{"value": 19.0}], key="9" * 64))
    (line,) = compare(before, after, ["*/perplexity/key"])
    assert "/metrics/" in line
    assert compare(before, after, ["*/perplexity/key", "run/* documents/value"]) == []


def test_artifacts_are_compared_by_content_and_not_by_key(tmp_path: Path) -> None:
    for folder, key in (("before", "0123456789ab"), ("after", "ba9876543210")):
        artifact = tmp_path / folder / "run" / "artifacts" / f"tiny-gptq-w4-s0-{key}"
        artifact.mkdir(parents=True)
        (artifact / "config.json").write_text("{}")
        (artifact / "model.safetensors").write_text(folder)
    (line,) = compare(figures(tmp_path / "before"), figures(tmp_path / "after"))
    assert line.startswith("run/artifacts/tiny-gptq-w4-s0/model.safetensors: ")


def test_samples_are_compared_unless_they_are_timings(tmp_path: Path) -> None:
    found = []
    for run in ("before", "after"):
        folder = tmp_path / run / "run" / "cells" / "tiny"
        folder.mkdir(parents=True)
        for suite, metric in (("perplexity", {}), ("latency", {"name": "decode_ms", "unit": "ms"})):
            samples = folder / f"{suite}.samples.jsonl"
            samples.write_text(run)
            made = record(suite, [metric], samples_file=samples.name)
            (folder / f"{suite}.json").write_text(json.dumps(made))
        found.append(figures(tmp_path / run))
    (line,) = compare(*found)
    assert line.startswith(f"{CELL}/perplexity/samples: ")


def test_the_exit_status_says_whether_figures_differ(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps({"run/a": {"key": "1"}}))
    after.write_text(json.dumps({"run/a": {"key": "2"}}))

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        script = Path(same_figures.__file__)
        command = [sys.executable, str(script), "compare", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    differing, same = run(before, after), run(before, before)
    assert (differing.returncode, differing.stdout) == (1, 'run/a/key: "1" -> "2"\n')
    assert same.returncode == 0
    assert same.stdout == "1 records and artifacts: no figure differs\n"
    assert run(before, after, "--allow", "*/key").returncode == 0
