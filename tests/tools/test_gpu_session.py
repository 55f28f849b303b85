"""The scripts for a GPU session, as far as a machine without a GPU goes: they refuse clearly."""

import os
import re
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
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
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


def commands(section: str, folder: Path, *flags: str) -> list[list[str]]:
    """The arguments of every Python that a section starts, from one that only writes them down."""
    python, log = folder / "python", folder / "log"
    python.write_text(f'#!/bin/sh\nprintf "%s\\037" "$@" >>{log}\nprintf "\\036" >>{log}\nexit 3\n')
    python.chmod(0o755)
    log.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(folder)}
    script = ["bash", "tools/gpu_session.sh", *flags, "--section", section]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, timeout=600)
    assert done.returncode != 0, "a failure inside a section is not swallowed"
    return [command.split("\037")[:-1] for command in log.read_text().split("\036")[:-1]]


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


def listed(name: str) -> list[str]:
    """The words of a variable of the script."""
    script = (ROOT / "tools" / "gpu_session.sh").read_text()
    found = re.search(rf'^{name}="([^"]+)"', script, re.MULTILINE)
    assert found is not None
    return found[1].split()


def gpu_tests() -> list[str]:
    """Files and folders of the sections `test` and `spread`."""
    return listed("GPU_TESTS") + listed("SPREAD_TESTS")


@pytest.mark.parametrize("section", listed("SECTIONS"))
def test_every_section_has_a_dry_run(tmp_path: Path, section: str) -> None:
    """It starts what the section starts, in the same way, and only then asks for less."""
    real, dry = commands(section, tmp_path), commands(section, tmp_path, "--dry-run")
    assert len(dry) == len(real) > 0
    for command, smaller in zip(real, dry, strict=True):
        assert smaller[: len(command)] == command
        added = smaller[len(command) :]
        assert added[0] in ("--dry-run", "--collect-only", "--launch", "--device")
        assert added[0] != "--launch" or added[1:] == ["--device", "cpu"]
        if (module := smaller[1]) in PARSERS:
            options = PARSERS[module](smaller[2:])
            assert options.device == "cpu"
            assert getattr(options, "kernel", "cpu") == "cpu"


def test_a_dry_run_leaves_nothing_behind() -> None:
    kept = ROOT / "results" / "gpu"
    before = sorted(kept.rglob("*"))
    done = run("tools/gpu_session.sh", "--dry-run", "device", "build")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(\w+) +\d+ s  ok$", done.stdout, re.MULTILINE) == ["device", "build"]
    assert sorted(kept.rglob("*")) == before


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
