"""The GPU benchmark of the solver, on a shape that a processor does in a second."""

import json

import pytest
import torch

from benchmarks import gpu_solver

TINY = ("--shape", "tiny", "--device", "cpu", "--kernel", "reference")


def test_the_tiny_shape_runs_on_the_cpu_and_says_what_is_extrapolated(capsys, tmp_path):
    file = tmp_path / "solver.json"
    assert gpu_solver.main([*TINY, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "tiny on the CPU" in out
    assert "kernel reference" in out
    assert "tiny, 6 blocks, 4 x 64 tokens" in out
    assert "EXTRAPOLATED from 2 blocks" in out
    told = json.loads(file.read_text())
    assert (told["name"], told["kernel"], told["bits"]) == ("tiny", "reference", 3)
    timing = told["timing"]
    assert timing["extrapolated_from"] == 2
    stages = timing["stages"]
    solved = timing["column_loop_s"] + timing["factor_s"]
    assert solved == pytest.approx(stages["solve"])
    every = [stages[name] for name in ("read", "hessian", "solve", "write")]
    block = sum(every) / 2 + stages["forward"]
    assert timing["block_s"] == pytest.approx(block)
    once = stages["structure"] + stages["capture"]
    assert timing["total_s"] == pytest.approx(once + 6 * block)
    assert gpu_solver.main([*TINY, "--blocks", "6", "--json", str(file)]) == 0
    assert "measured; published" in capsys.readouterr().out
    timing = json.loads(file.read_text())["timing"]
    assert timing["extrapolated_from"] is None
    assert timing["total_s"] == pytest.approx(sum(timing["stages"].values()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses(capsys):
    assert gpu_solver.main(["--shape", "opt-13b"]) == 2
    assert "no GPU here" in capsys.readouterr().err
