"""The scripts for a GPU session, as far as a machine without a GPU goes: they refuse clearly."""

import os
import re
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


def gpu_tests() -> list[str]:
    """Files and folders of the section `test`."""
    script = (ROOT / "tools" / "gpu_session.sh").read_text()
    found = re.search(r'^GPU_TESTS="([^"]+)"', script, re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_every_file_with_a_test_for_a_gpu_is_in_the_session() -> None:
    taken = [ROOT / path for path in gpu_tests()]
    assert all(path.exists() for path in taken)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path != Path(__file__) and "mark.gpu" in path.read_text():
            assert any(path.is_relative_to(each) for each in taken), path


def test_every_test_that_is_skipped_without_a_gpu_is_marked() -> None:
    """`-m gpu` chooses: without the mark it would run nowhere."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text()
        if path != Path(__file__) and "skipif(not torch.cuda.is_available()" in text:
            assert text.count("mark.gpu") >= text.count("skipif(not torch.cuda"), path


BARE = """
import sys
for name in ("hydra", "omegaconf", "pydantic", "wandb", "lm_eval", "datasets", "pandas",
             "matplotlib", "compressed_tensors", "psutil"):
    sys.modules[name] = None  # an import fails as if it were not installed
import benchmarks.decode, benchmarks.gpu_solver, cuda_ext.bench.__main__, tools.sanitize
import pytest
options = ["-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*options, *sys.argv[1:]]))
"""


def test_the_session_needs_nothing_that_a_gpu_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    done = run(sys.executable, "-c", BARE, *gpu_tests())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in ("test_cuda_execution", "test_whole_layers", "test_a_real_cuda_graph"):
        assert name in done.stdout
