"""The comparison of a run with the kept one: what may differ by how much, and broken kernels."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tools import reference as module

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/reference.py, holding runs against a folder of this test."""
    monkeypatch.setattr(module, "REFERENCE", tmp_path / "reference")
    return module


def write(
    folder: Path,
    method: str,
    suite: str,
    metrics: list[dict],
    arithmetic: str = "fast",
    weights: str | None = None,
) -> None:
    """A record of one suite, made from a kept one."""
    kept = next((ROOT / "results/reference/quickstart/cells").glob(f"*-{method}-w4-*/perp*.json"))
    record = json.loads(kept.read_text())
    record["suite"] = suite
    record["environment"]["arithmetic"] = arithmetic if method == "gptq" else None
    if weights is not None:
        record["inputs"]["weights"] = weights
    shared = {"unit": "nat", "n": 9, "n_unit": "tokens", "task": "embedded", "notes": {}}
    record["metrics"] = [shared | metric for metric in metrics]
    record["samples_file"] = None
    target = folder / "cells" / kept.parent.name / f"{suite}-{record['key'][:12]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record))


def divergence(kl: float, flips: float, parity: str = "holds") -> list[dict]:
    return [
        {"name": "kl_divergence", "value": kl},
        {"name": "top1_flip_rate", "value": flips},
        {"name": "kernel_kl", "value": 1e-13, "notes": {"parity": parity}},
    ]


def test_equal_runs_agree(reference: ModuleType, tmp_path: Path) -> None:
    for method in ("rtn", "gptq"):
        write(reference.REFERENCE, method, "divergence", divergence(0.04, 0.19))
    shutil.copytree(reference.REFERENCE, tmp_path / "ours")
    assert reference.compare(tmp_path / "ours") == []


def test_gptq_may_differ_more_than_rounding(reference: ModuleType, tmp_path: Path) -> None:
    for method in ("rtn", "gptq"):
        write(reference.REFERENCE, method, "divergence", divergence(0.04, 0.19))
        write(tmp_path / "ours", method, "divergence", divergence(0.045, 0.2))
    problems = reference.compare(tmp_path / "ours")
    assert len(problems) == 2
    assert all(" rtn " in problem for problem in problems)
    assert any("kl_divergence: 0.045, the reference has 0.04" in problem for problem in problems)


def test_portable_arithmetic_gives_the_same_weights_and_prints_the_same(
    reference: ModuleType, tmp_path: Path
) -> None:
    def run(folder: Path, kl: float, weights: str, arithmetic: str = "portable") -> None:
        write(folder, "gptq", "divergence", divergence(kl, 0.19), arithmetic, weights)

    run(reference.REFERENCE, 0.04, "a" * 64)
    run(tmp_path / "ours", 0.0400001, "a" * 64)
    assert reference.compare(tmp_path / "ours") == []
    run(tmp_path / "ours", 0.041, "a" * 64)
    (problem,) = reference.compare(tmp_path / "ours")
    assert "kl_divergence: 0.041, the reference has 0.040; portable" in problem
    run(tmp_path / "ours", 0.04, "b" * 64)
    (problem,) = reference.compare(tmp_path / "ours")
    assert "other weights than the reference (bbbbbbbbbbbb, not aaaaaaaaaaaa)" in problem
    run(tmp_path / "ours", 0.041, "b" * 64, "fast")
    assert reference.compare(tmp_path / "ours") == []


def test_an_accuracy_may_differ_by_its_ties(reference: ModuleType, tmp_path: Path) -> None:
    def run(folder: Path, right: int, ties: str) -> None:
        accuracy = {
            "name": "accuracy", "value": right / 200, "unit": "fraction", "n": 200,
            "notes": {"ties": ties},
        }  # fmt: skip
        write(folder, "rtn", "zeroshot", [accuracy])

    run(reference.REFERENCE, 150, "2")
    run(tmp_path / "ours", 152, "2")
    assert reference.compare(tmp_path / "ours") == []
    run(tmp_path / "ours", 153, "2")
    assert len(reference.compare(tmp_path / "ours")) == 1


def test_a_broken_kernel_is_a_problem_whatever_the_reference_says(
    reference: ModuleType, tmp_path: Path
) -> None:
    broken = "BROKEN: mean above 1e-09 nat"
    write(reference.REFERENCE, "rtn", "perplexity", [{"name": "perplexity", "value": 3.0}])
    write(tmp_path / "ours", "rtn", "perplexity", [{"name": "perplexity", "value": 3.0}])
    write(tmp_path / "ours", "rtn", "divergence", divergence(0.04, 0.19, broken))
    (problem,) = reference.compare(tmp_path / "ours")
    assert problem.endswith(f"kernel_kl: 1e-13, {broken}")


def test_a_figure_that_is_gone_is_a_problem(reference: ModuleType, tmp_path: Path) -> None:
    write(reference.REFERENCE, "rtn", "divergence", divergence(0.04, 0.19))
    write(tmp_path / "ours", "rtn", "divergence", divergence(0.04, 0.19)[:1])
    problems = reference.compare(tmp_path / "ours")
    assert len(problems) == 2
    assert all("missing in" in problem for problem in problems)
