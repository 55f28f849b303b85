"""Output that is closed, full or of an encoding that lacks what is written."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli, streams


def run(shell: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell command in which $B is bitsweep."""
    return subprocess.run(
        ["bash", "-c", shell],
        capture_output=True,
        text=True,
        env={**os.environ, "B": f"{sys.executable} -m harness", **environment},
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_streams_that_take_nothing() -> None:
    full = run("$B --help > /dev/full")
    assert full.returncode == cli.FAILED
    said = "bitsweep: the output could not be written (No space left on device).\n"
    assert full.stderr == said
    both = run("$B fly > /dev/full 2> /dev/full")
    assert (both.returncode, both.stdout, both.stderr) == (cli.IMPOSSIBLE, "", "")
    closed = run("$B --help >&- 2>&- <&-")
    assert (closed.returncode, closed.stdout, closed.stderr) == (cli.OK, "", "")


def test_a_reader_that_has_seen_enough_hears_no_complaint() -> None:
    done = run("$B run --help | head -n 1")
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


def test_what_an_ascii_terminal_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)  # closed
    streams.prepare()
    print("3.56¹² – 1.2 × 10 ± 2… 好")
    sys.stdout.flush()
    assert raw.getvalue().decode() == "3.56^12 - 1.2 x 10 +/- 2... ?\n"
    print("nobody", file=sys.stderr)


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_errors_on_an_ascii_terminal(variables: dict[str, str]) -> None:
    done = run("$B plan 'schéme=w4'", **variables)
    assert done.returncode == cli.IMPOSSIBLE
    assert done.stderr.startswith("bitsweep: ")
    assert done.stderr.count("\n") == 1
