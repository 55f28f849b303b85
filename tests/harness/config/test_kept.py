"""Cells from the disk are those that Hydra composes, and nothing that decides them is missed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.config import help as options
from harness.config import kept
from harness.config.compose import compose_cells
from harness.config.schema import Cell
from harness.errors import ConfigError


class Composer:
    """Cells by way of the disk, and how often Hydra was asked for them."""

    def __init__(self) -> None:
        self.composed = 0

    def __call__(
        self, *overrides: str, multirun: bool = False, extra: Path | None = None
    ) -> list[Cell]:
        def compose() -> list[Cell]:
            self.composed += 1
            return direct(overrides, multirun, extra)

        return kept.kept_cells(overrides, multirun, extra, compose)


def direct(
    overrides: Sequence[str], multirun: bool = False, extra: Path | None = None
) -> list[Cell]:
    return compose_cells(overrides, multirun, extra)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cells"


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "scheme").mkdir(parents=True)
    (folder / "scheme" / "mine.yaml").write_text("bits: 8\n")
    return folder


@pytest.mark.parametrize(
    ("overrides", "multirun"),
    [
        (["method=rtn,gptq", "scheme=w4,w3"], True),
        (["runtime.timeout_s=5", "name='a: b'", "model.context=null", "seed=3"], False),
        (["suite=[perplexity_quick]", "model=opt-125m", "paths.results='~/r'"], False),
    ],
)
def test_the_cells_are_those_that_hydra_composes(overrides: list[str], multirun: bool) -> None:
    cells, composer = direct(overrides, multirun), Composer()
    for _ in range(2):
        found = composer(*overrides, multirun=multirun)
        assert found == cells
        assert repr(found) == repr(cells), "types too"
    assert composer.composed == 1


def test_the_cells_of_an_experiment_come_back_and_need_no_hydra(
    quickstart: list[Cell], cache: Path
) -> None:
    found = kept.kept_cells(["experiment=quickstart"], False, None, lambda: quickstart)
    assert found is quickstart
    assert len(list(cache.iterdir())) == 1, "what is read back was equal"
    script = (
        "import sys; from harness.config.kept import kept_cells;"
        "cells = kept_cells(['experiment=quickstart'], False, None, lambda: 1 / 0);"
        "print(len(cells), 'hydra' in sys.modules, 'torch' in sys.modules);"
        "print(repr(cells))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    first, second = done.stdout.splitlines()
    assert first.split() == [str(len(quickstart)), "False", "False"], done.stderr
    assert second == repr(quickstart)


def test_everything_that_decides_the_cells_is_in_the_key(
    extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composer = Composer()
    counts = []
    for _ in range(2):
        composer("method=rtn")
        composer("method=rtn", multirun=True)
        composer("method=rtn", extra=extra)
        composer("method=gptq", extra=extra)
        counts.append(composer.composed)
    assert counts == [4, 4]
    (extra / "scheme" / "mine.yaml").write_text("bits: 4\n")
    composer("method=rtn", extra=extra)
    (extra / "scheme" / "other.yaml").write_text("bits: 4\n")
    composer("method=rtn", extra=extra)
    assert composer.composed == 6
    composer("method=rtn")
    assert composer.composed == 6
    monkeypatch.chdir(tmp_path)
    assert composer("method=rtn")[0].config.paths.results == str(tmp_path / "results")
    assert composer.composed == 7
    monkeypatch.setattr(kept, "version", lambda name: f"{name} 99")
    composer("method=rtn")
    assert composer.composed == 8
    monkeypatch.setattr(kept, "_code", lambda: [["harness/config/compose.py", 1, 2]])
    composer("method=rtn")
    assert composer.composed == 9


def test_a_change_of_the_folder_shows(extra: Path) -> None:
    composer = Composer()
    assert composer("scheme=mine", extra=extra)[0].config.scheme.bits == 8
    (extra / "scheme" / "mine.yaml").write_text("bits: 3\n")
    assert composer("scheme=mine", extra=extra)[0].config.scheme.bits == 3
    (extra / "scheme" / "mine.yaml").unlink()
    with pytest.raises(ConfigError, match="mine"):
        composer("scheme=mine", extra=extra)


def test_what_lies_elsewhere_is_composed_every_time(
    extra: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEED_OF_MINE", "3")
    composer = Composer()
    for seed in ("3", "4"):
        monkeypatch.setenv("SEED_OF_MINE", seed)
        assert composer("seed=${oc.env:SEED_OF_MINE}")[0].config.seed == int(seed)
    (extra / "scheme" / "other.yaml").write_text("bits: ${oc.decode:${oc.env:SEED_OF_MINE}}\n")
    for bits in ("2", "3"):
        monkeypatch.setenv("SEED_OF_MINE", bits)
        assert composer("scheme=other", extra=extra)[0].config.scheme.bits == int(bits)
    composer(f"hydra.searchpath=[file://{extra}]", "scheme=mine")
    assert composer.composed == 5
    assert not cache.exists()


def test_a_folder_of_very_many_files_is_not_read(
    extra: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_MOST_FILES", 3)
    Composer()("scheme=mine", extra=extra)
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b"half"])
def test_a_damaged_file_is_written_again(damage: bytes, cache: Path) -> None:
    composer = Composer()
    cells = composer("method=rtn")
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    assert composer("method=rtn") == cells
    assert composer.composed == 2
    assert file.read_bytes() == whole


def test_errors_are_not_kept(cache: Path, tmp_path: Path, extra: Path) -> None:
    composer = Composer()
    for _ in range(2):
        with pytest.raises(ConfigError, match="scheme"):
            composer("scheme=w99x")
    with pytest.raises(ConfigError, match="is not a folder"):
        composer(extra=tmp_path / "nowhere")
    assert composer.composed == 3
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "harness")
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    composer = Composer()
    assert composer("method=rtn") == composer("method=rtn")
    assert composer.composed == 2
    assert "cells will be composed again" in caplog.text


@pytest.mark.parametrize("option", options.options("experiment"))
def test_what_conf_itself_holds_is_kept(option: str) -> None:
    """A resolver in one file of conf/ would have every plan composed anew, for seconds."""
    assert kept._key([f"experiment={option}"], False, None) is not None
