"""The GPU benchmark of the solver, on a shape that a processor does in a second."""

import pytest
import torch

from benchmarks import gpu_solver


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["gpu_solver", *arguments])
    return gpu_solver.main()


def test_the_tiny_shape_runs_on_the_cpu_and_says_what_is_extrapolated(monkeypatch, capsys):
    kernel = ("--kernel", "reference")
    assert run(monkeypatch, "--shape", "tiny", "--device", "cpu", *kernel) == 0
    out = capsys.readouterr().out
    assert "tiny on the CPU" in out
    assert "kernel reference" in out
    assert "tiny, 6 blocks, 4 x 64 tokens" in out
    assert "EXTRAPOLATED from 2 blocks" in out
    assert run(monkeypatch, "--shape", "tiny", "--device", "cpu", "--blocks", "6", *kernel) == 0
    assert "measured; published" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_refuses(monkeypatch, capsys):
    assert run(monkeypatch, "--shape", "opt-13b") == 2
    assert "no GPU here" in capsys.readouterr().err
