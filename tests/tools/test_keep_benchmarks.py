"""What tools/keep_benchmarks.py keeps: output under the command, the machine and the commit."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import keep_benchmarks as benchmarks

pytestmark = pytest.mark.skipif(
    not (benchmarks.REPOSITORY / ".git").exists(), reason="tools run from a checkout"
)


def test_output_is_kept_below_its_command_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "KEPT", tmp_path)
    monkeypatch.setitem(benchmarks.COMMANDS, "start", "this --flag 'two words'")
    benchmarks.keep("start")
    first, second, empty, *rest = (tmp_path / "start.txt").read_text().splitlines()
    assert first == "$ python -m this --flag 'two words'"
    assert second.startswith("# ")
    assert "cores" in second
    assert "commit" in second
    assert not empty
    assert rest[0] == "The Zen of Python, by Tim Peters"


def test_a_failed_benchmark_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "KEPT", tmp_path / "kept")
    monkeypatch.setitem(benchmarks.COMMANDS, "start", "no_such_module_anywhere")
    with pytest.raises(subprocess.CalledProcessError):
        benchmarks.keep("start")
    assert not (tmp_path / "kept").exists()


def test_an_unknown_name_is_an_error_of_use() -> None:
    done = subprocess.run(
        [sys.executable, "tools/keep_benchmarks.py", "nothing"],
        cwd=benchmarks.REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nothing is not kept" in done.stderr
