"""A model so small that a cell takes a second, for the tests of this room."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.compose import compose_cells
from harness.config.schema import Cell, CellConfig
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
    return [
        "model=local",
        f"model.path={tiny_model}",
        "model.name=tiny",
        "method=rtn",
        "calib=documents",
        f"calib.path={stories_file}",
        "calib.sequences=4",
        "calib.length=32",
        "suite=[perplexity_documents,latency]",
        f"suite.perplexity.paths.documents={stories_file}",
        "suite.perplexity.max_windows=4",
        "suite.latency.prompt_tokens=4",
        "suite.latency.decode_tokens=2",
        "suite.latency.warmup=1",
        "suite.latency.repeats=1",
        "tracker=none",
        "runtime.threads=1",
        f"paths.results={tmp_path / 'results'}",
    ]


@pytest.fixture
def tiny_cell(tiny_overrides: list[str]) -> Callable[..., CellConfig]:
    """tiny_cell("method=gptq", latency=False): the configuration with more overrides."""

    def make(*more: str, latency: bool = True) -> CellConfig:
        (cell,) = compose_cells([*tiny_overrides, *more])
        if not latency:
            del cell.config.suite["latency"]
        return cell.config

    return make
