"""The comparison of a run with the kept one: what may differ by how much, and broken kernels."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reference(tmp_path: Path) -> ModuleType:
    """tools/reference.py, holding runs against a folder of this test."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.REFERENCE = tmp_path / "reference"
    return module


def write(folder: Path, method: str, suite: str, metrics: list[dict]) -> None:
    """A record of one suite, made from a kept one."""
    kept = next((ROOT / "results/reference/quickstart/cells").glob(f"*-{method}-w4-*/perp*.json"))
    record = json.loads(kept.read_text())
    record["suite"] = suite
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
