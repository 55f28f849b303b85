"""The model card of an artifact that a run writes."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from harness.cell.resolve import resolve
from harness.config.compose import compose_cells
from harness.config.schema import CellConfig
from harness.run import cards
from harness.run.stage import run_cell
from quant.checkpoint.card import is_sealed
from quant.checkpoint.folder import CARD

Make = Callable[..., CellConfig]


def test_a_run_writes_the_card_with_its_figures(tiny_cell: Make, tmp_path: Path) -> None:
    cell = resolve(tiny_cell("method=gptq", "scheme=w4g8", latency=False))
    run_cell(cell, lambda event: None)
    text = (cell.artifact / CARD).read_text()
    assert is_sealed(text)
    assert str(tmp_path) not in text
    assert "local" not in str(ModelCard(text).data.to_dict())
    assert cards.command(cell) in text
    (metric,) = [each for each in cell.find("perplexity").metrics if each.name == "perplexity"]
    assert f"| {metric.task} | perplexity | {metric.value:.2f}"[:-1] in text
    assert f"| {metric.n:,} {metric.n_unit} |" in text
    made = cell.find("quantization")
    (size,) = [each.value for each in made.metrics if each.name == "artifact_size"]
    files = [path for path in cell.artifact.iterdir() if path.name != CARD]
    assert size == sum(path.stat().st_size for path in files), "the card may change"
    (cell.artifact / CARD).write_text("mine")
    cards.write_figures(cell)
    assert (cell.artifact / CARD).read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        "method=gptq scheme=w3g8_sym method.act_order=true method.damping_ladder=[0.1,1]",
        "method=rtn scheme=w4_head_w8g32 transform=equalize transform.equalize.strength=1",
    ],
)
def test_the_command_makes_the_same_artifact(
    tiny_cell: Make, tiny_model: Path, stories_file: Path, options: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Run beside the model and the text, whose last names it has."""
    cell = resolve(tiny_cell(*options.split(), "calib.documents.start=2", latency=False))
    beside = tiny_model.parent / stories_file.name
    beside.write_text(stories_file.read_text())
    monkeypatch.chdir(tiny_model.parent)
    _, verb, *words = shlex.split(cards.command(cell))
    assert verb == "run"
    small = ["suite=latency", "suite.latency.prompt_tokens=4", "suite.latency.decode_tokens=2"]
    (again,) = compose_cells([*words, *small, f"paths.results={cell.store.root}"])
    assert resolve(again.config).keys.stages["quantization"] == cell.keys.stages["quantization"]


@pytest.mark.parametrize(
    ("said", "data"),
    [
        ("Apache 2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        (
            "OPT licence (not commercial)",
            {"license": "other", "license_name": "opt-licence-not-commercial"},
        ),
        (None, {}),
    ],
)
def test_base_and_licence_of_the_hub(
    tiny_cell: Make, said: str | None, data: dict[str, str]
) -> None:
    cell = resolve(tiny_cell(latency=False))
    cell.model.config.id, cell.model.config.revision = "org/name", "abc"
    cell.model.config.licence = said
    found = cards.origin(cell)
    assert (found.base, found.licence) == (("org/name",), data)
    assert "model=hub model.id=org/name model.revision=abc model.dtype=float32" in found.command
