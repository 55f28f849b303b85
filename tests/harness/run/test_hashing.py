"""Hashing a large model is seen: a bar on a terminal, a line elsewhere, nothing if it is quick."""

import hashlib
import io
from pathlib import Path

import pytest
from rich.console import Console

from harness.models.folders import folder_fingerprint
from harness.records import hashes
from harness.run import hashing


@pytest.fixture
def folder(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model, as if it had not been read before, in many steps."""
    monkeypatch.setattr(hashes, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(hashes, "_kept", lambda place, _: hashes._read(place))
    return tiny_model


def shown(folder: Path, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with hashing.hashing_shown(console):
        folder_fingerprint(folder)
    return stream.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_quick_is_not_worth_a_word(folder: Path, terminal: bool) -> None:
    assert shown(folder, terminal) == ""


def test_elsewhere_it_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "PATIENCE_SECONDS", 0.0)
    said = shown(folder, terminal=False)
    assert said.startswith("reading the ")
    assert said.endswith(f" of {folder.name} to hash them, once\n")
    assert said.count("\n") == 1


def test_on_a_terminal_it_is_a_bar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "PATIENCE_SECONDS", 0.0)
    assert f"hashing {folder.name}, once" in shown(folder, terminal=True)


def test_steps_go_up_to_all_bytes(folder: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    files = sorted(path for path in folder.iterdir())
    total = sum(path.stat().st_size for path in files)
    with hashes.told(lambda *step: steps.append(step)):
        found = hashes.files_sha256("tiny", files)
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    assert steps[-1] == ("tiny", total, total)
    assert len(steps) > 20
