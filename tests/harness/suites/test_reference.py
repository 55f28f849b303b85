"""The reference's distributions are made once a model and text, and figures do not depend on it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.records.kept import FOLDER, Kept
from harness.records.store import Store
from harness.suites import comparing, compressed, reference
from harness.suites.base import SuiteContext
from harness.suites.divergence import Config
from tests.harness.suites.test_comparing import VOCABULARY, artifact, context, packed, tiny

__all__ = ["artifact"]  # a fixture

WINDOWS = 10


@pytest.fixture(autouse=True)
def _compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a vocabulary of 128 be one that is compressed."""
    monkeypatch.setattr(reference, "EXACT_VOCABULARY", 100)
    monkeypatch.setattr(compressed, "ENTRIES", 48)


class Cell:
    """A cell whose full-precision model counts how often it is loaded."""

    def __init__(self, artifact: Path, root: Path | None, **more: Any) -> None:
        self.loaded = 0
        kept = None if root is None else Kept(Store(root), "tiny", "ab" * 32)
        self.context: SuiteContext = replace(
            context(packed(artifact), artifact), load_baseline=self._load, kept=kept, **more
        )

    def _load(self) -> Any:
        self.loaded += 1
        return tiny()

    def figures(self, text: str, windows: int = WINDOWS) -> dict[str, float]:
        result = comparing.run(self.context, Config(["text"], {"text": text}, windows))
        return {metric.name: metric.value for metric in result.metrics}


def files(root: Path) -> list[Path]:
    return sorted((root / FOLDER).glob("*/*"))


def test_a_second_cell_loads_no_full_precision_model(
    artifact: Path, text: str, tmp_path: Path
) -> None:
    first, second = Cell(artifact, tmp_path), Cell(artifact, tmp_path)
    found = first.figures(text)
    assert first.loaded == 1
    assert len(files(tmp_path)) == WINDOWS + 1
    assert second.figures(text) == found
    assert second.loaded == 0
    alone = Cell(artifact, None)
    assert alone.figures(text) == found
    assert alone.loaded == 1


def test_windows_of_a_longer_text_are_added(artifact: Path, text: str, tmp_path: Path) -> None:
    Cell(artifact, tmp_path).figures(text, 4)
    first = files(tmp_path)
    longer = Cell(artifact, tmp_path)
    found = longer.figures(text)
    assert longer.loaded == 1
    assert set(first) < set(files(tmp_path))
    assert found == Cell(artifact, None).figures(text)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: None])
def test_a_damaged_or_missing_file_is_made_again(
    artifact: Path, text: str, tmp_path: Path, damage: Callable[[bytes], bytes | None]
) -> None:
    found = Cell(artifact, tmp_path).figures(text)
    before = {path: path.read_bytes() for path in files(tmp_path)}
    for path in (files(tmp_path)[3], files(tmp_path)[-1]):  # a window, and the noise
        data = damage(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)
    again = Cell(artifact, tmp_path)
    assert again.figures(text) == found
    assert again.loaded == 1
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_a_disk_that_takes_nothing_changes_no_figure(
    artifact: Path, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with caplog.at_level(logging.WARNING, "harness"):
        found = Cell(artifact, tmp_path).figures(text)
    assert "Only time is lost" in caplog.text
    assert found == Cell(artifact, None).figures(text)


def test_the_estimate_and_its_bounds_hold_the_exact_figure(
    artifact: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Cell(artifact, None).figures(text, 30)
    monkeypatch.setattr(reference, "EXACT_VOCABULARY", VOCABULARY)
    exact = Cell(artifact, None).figures(text, 30)
    assert "kl_sampling" not in exact
    assert found["kl_certain"] < exact["kl_divergence"]
    assert found["kl_certain"] > 0.5 * exact["kl_divergence"]
    assert 0 < found["kl_sampling"] < 0.05 * exact["kl_divergence"]
    assert abs(found["kl_divergence"] - exact["kl_divergence"]) < 3 * found["kl_sampling"]
    same = {name for name in exact if name.startswith(("flips", "top1", "kernel", "noise_flip"))}
    assert len(same) > 6
    assert found["kl_noise"] == pytest.approx(exact["kl_noise"], rel=0.2)
    assert {name: found[name] for name in same} == {name: exact[name] for name in same}


def test_full_precision_and_its_cells_have_the_same_noise(
    artifact: Path, text: str, tmp_path: Path
) -> None:
    kept = Kept(Store(tmp_path), "tiny", "ab" * 32)
    full = replace(context(tiny()), kept=kept)
    result = comparing.run(full, Config(["text"], {"text": text}, WINDOWS))
    noise = {metric.name: metric.value for metric in result.metrics if "noise" in metric.name}
    assert len(noise) == 4
    assert len(files(tmp_path)) == WINDOWS + 1
    cell = Cell(artifact, tmp_path)
    found = cell.figures(text)
    assert noise.items() <= found.items()


def test_what_another_process_makes_is_waited_for_and_read(
    artifact: Path, text: str, tmp_path: Path
) -> None:
    complete, other = tmp_path / "complete", tmp_path / "other"
    found = Cell(artifact, complete).figures(text)
    said: list[str] = []

    def waiting(who: str) -> None:
        said.append(who)
        for path in files(complete):  # meanwhile the other process has made all of them
            place = other / path.relative_to(complete)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
        held.__exit__(None, None, None)

    held = Kept(Store(other), "tiny", "ab" * 32).lock()
    held.__enter__()
    cell = Cell(artifact, None)
    cell.context = replace(cell.context, kept=Kept(Store(other), "tiny", "ab" * 32, waiting))
    assert cell.figures(text) == found
    assert len(said) == 1
    assert cell.loaded == 0


def test_noise_is_measured_on_so_many_positions_and_a_window_at_least() -> None:
    windows = [torch.zeros(length) for length in (1500, 2000, 590, 10)]
    assert len(reference.noise_windows(windows)) == 3
    assert len(reference.noise_windows([torch.zeros(5000), torch.zeros(5)])) == 1


def test_other_windows_have_other_samples() -> None:
    one, other = torch.arange(10), torch.arange(1, 11)
    assert reference._seed(one) == reference._seed(one.clone())
    assert reference._seed(one) != reference._seed(other)
    assert reference._window_name(one) != reference._window_name(one[:9])
