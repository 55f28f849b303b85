"""The scripts for a GPU session, as far as a machine without a GPU goes: they refuse clearly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import decode, gpu_solver
from cuda_ext.bench import __main__ as bench

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_an_unknown_section_is_named() -> None:
    done = run("tools/gpu_session.sh", "test", "benches")
    assert done.returncode == 2
    assert "section benches is unknown; choose of device build test" in done.stderr


@pytest.mark.parametrize(
    "command", [["tools/gpu_session.sh"], [sys.executable, "tools/sanitize.py"]]
)
def test_without_a_gpu_nothing_is_run(command: list[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run(*command)
    assert done.returncode == 2
    assert "no GPU: PyTorch sees no CUDA device here (torch" in done.stderr
    assert done.stdout == ""


PARSERS = {
    "benchmarks.decode": decode._parser().parse_args,
    "benchmarks.gpu_solver": gpu_solver._parser().parse_args,
    "cuda_ext.bench": bench._options,
}


def commands(section: str, folder: Path) -> list[list[str]]:
    """The arguments of every Python that a section starts, from one that only writes them down."""
    python, log = folder / "python", folder / "log"
    python.write_text(f'#!/bin/sh\nprintf "%s\\037" "$@" >>{log}\necho >>{log}\nexit 3\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(folder)}
    script = ["bash", "tools/gpu_session.sh", "--section", section]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode != 0, "a failure inside a section is not swallowed"
    return [line.split("\037")[:-1] for line in log.read_text().splitlines()]


@pytest.mark.parametrize(
    ("section", "files"),
    [
        ("bench", ["kernels.json"]),
        ("bench-batches", ["batches.json"]),
        ("bench-all", ["all.json"]),
        ("crossover", ["crossover.json"]),
        ("decode", ["decode-opt-66b.json", "decode-opt-175b.json"]),
        ("solver", ["solver-opt-175b.json", "solver-opt-13b.json"]),
    ],
)
def test_the_modules_take_these_arguments(tmp_path: Path, section: str, files: list[str]) -> None:
    """A run that fails does not stop the next of its section; each writes to the output folder."""
    started = commands(section, tmp_path)
    assert [flag for flag, *_ in started] == ["-m"] * len(files)
    parsed = [PARSERS[name](arguments) for _, name, *arguments in started]
    assert [options.json for options in parsed] == [tmp_path / file for file in files]
    assert {options.device for options in parsed} == {"cuda"}
    assert {getattr(options, "kernel", "cuda") for options in parsed} == {"cuda"}
