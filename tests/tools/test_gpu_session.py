"""The scripts for a GPU session, as far as a machine without a GPU goes: they refuse clearly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
