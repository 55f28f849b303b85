"""A model so small that a cell takes a second, for the tests of this room."""

import copy
import socket
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from harness.config.compose import compose_cells
from harness.config.schema import Cell, CellConfig
from harness.records.record import Record
from harness.records.store import Store
from tests.harness.tiny import save_tiny_model

STORIES = "<|endoftext|>\n".join(
    f"Tom had {n} red apples and put them in a box. Anna looked into the box and saw {n} apples.\n"
    for n in range(40)
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT model with the embedded tokenizer: 2 blocks of width 32."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def stories_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents."""
    file = tmp_path_factory.mktemp("texts") / "stories.txt"
    file.write_text(STORIES)
    return file


@pytest.fixture(scope="session")
def quickstart() -> list[Cell]:
    """The cells of the quickstart: Hydra composes for seconds. To be read, not changed."""
    return compose_cells(["experiment=quickstart"])


@pytest.fixture
def tiny_overrides(tiny_model: Path, stories_file: Path, tmp_path: Path) -> list[str]:
    """Overrides of a cell that runs in about a second: RTN at 4 bits, perplexity and latency."""
    return [*_tiny(tiny_model, stories_file), f"paths.results={tmp_path / 'results'}"]


@pytest.fixture
def tiny_cell(tiny_model: Path, stories_file: Path, tmp_path: Path) -> Callable[..., CellConfig]:
    """tiny_cell("method=gptq", latency=False): the configuration with more overrides."""

    def make(*more: str, latency: bool = True) -> CellConfig:
        config = copy.deepcopy(_composed((*_tiny(tiny_model, stories_file), *more)))
        if not any(each.startswith("paths.results=") for each in more):
            config.paths.results = str(tmp_path / "results")
        if not latency:
            del config.suite["latency"]
        return config

    return make


def _tiny(model: Path, stories: Path) -> list[str]:
    return [
        "model=local",
        f"model.path={model}",
        "model.name=tiny",
        "method=rtn",
        "calib=documents",
        f"calib.path={stories}",
        "calib.sequences=4",
        "calib.length=32",
        "suite=[perplexity_documents,latency]",
        f"suite.perplexity.paths.documents={stories}",
        "suite.perplexity.max_windows=4",
        "suite.latency.prompt_tokens=4",
        "suite.latency.decode_tokens=2",
        "suite.latency.warmup=1",
        "suite.latency.repeats=1",
        "tracker=none",
        "runtime.threads=1",
    ]


@cache
def _composed(overrides: tuple[str, ...]) -> CellConfig:
    """What Hydra composes of them, for a fifth of a second: once for all tests."""
    (cell,) = compose_cells(overrides)
    return cell.config


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Unix sockets (wandb's own service) are fine, the network is not; nobody is logged in."""
    connect = socket.socket.connect

    def guarded(self, address):
        assert self.family == socket.AF_UNIX, f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(folder))
    return folder


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    """keep(records, name="results"): a results folder with the records."""

    def write(records: Sequence[Record], name: str = "results") -> Path:
        for each in records:
            Store(tmp_path / name).write(each)
        return tmp_path / name

    return write
