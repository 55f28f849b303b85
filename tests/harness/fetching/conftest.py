"""A hub of our own with a model and a text, an empty cache, and a cell that needs both."""

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from huggingface_hub import constants

from harness.config.compose import compose_cells
from harness.config.schema import Cell
from harness.data import hub, lock
from harness.data.texts import HUB_TEXTS
from tests.harness.data.test_hub import be_hub
from tests.harness.file_hub import FileHub, serving_files

TEXT = HUB_TEXTS["wikitext2-test"]
MODEL, WIKITEXT = "models/some/tiny", f"datasets/{TEXT.dataset}"
Make = Callable[..., list[Cell]]


def parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow
    from pyarrow.parquet import write_table

    stream = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


def fill(server: FileHub, tiny_model: Path) -> None:
    """Put the model and the text of `needing` on a hub."""
    server.push(MODEL, {file.name: file.read_bytes() for file in tiny_model.iterdir()})
    rows = [
        {"text": f"Tom had {n} red apples, and put them in a box by the road.\n"} for n in range(99)
    ]
    server.commits[WIKITEXT] = {TEXT.revision: {TEXT.file: parquet(rows)}}
    server.heads[WIKITEXT] = TEXT.revision


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> Iterator[FileHub]:
    """A hub that may be asked, and an empty cache."""
    with serving_files() as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        be_hub(monkeypatch, server.endpoint)
        fill(server, tiny_model)
        hub.forget()
        yield server
        hub.forget()
        lock.use(tmp_path / "nothing")


NEEDING = (
    *("model=hub", "model.id=some/tiny", "model.name=tiny", "model.context=32"),
    *("method=rtn", "scheme=w4", "suite=[perplexity]", "suite.perplexity.max_windows=2"),
    "runtime.threads=1",
)


def overrides(results: Path) -> list[str]:
    return [*NEEDING, f"paths.results={results}"]


@pytest.fixture
def needing(tmp_path: Path) -> Make:
    """needing(*more): one cell that needs the model and the text of the hub."""
    results = str(tmp_path / "results")
    where = f"paths.results={results}"

    def make(*more: str) -> list[Cell]:
        cells = copy.deepcopy(_composed(more))
        for cell in cells:
            cell.config.paths.results = results
        return [replace(cell, overrides=(*cell.overrides, where)) for cell in cells]

    return make


@cache
def _composed(more: tuple[str, ...]) -> list[Cell]:
    """What Hydra composes for a fifth of a second, once for all tests."""
    return compose_cells([*NEEDING, *more])
