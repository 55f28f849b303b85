"""transform=[equalize] with changes kept in front of layers: from the command line to the table."""

import json
import re
from pathlib import Path

import pytest

from harness import cli
from harness.records.record import QUANTIZATION
from harness.records.store import load_records

ROTATING = Path(__file__).parents[1] / "quant" / "rotating.py"


@pytest.fixture
def overrides(tiny_overrides: list[str]) -> list[str]:
    # Any scale at full strength: random weights make inputs of nearly equal size.
    return [
        *(each for each in tiny_overrides if not each.startswith("suite.latency")),
        "scheme=w8g16", "suite=[perplexity_documents]", "transform=[equalize]",
        "transform.equalize.strength=1.0", "transform.equalize.powers_of_two=false",
    ]  # fmt: skip


def loaded(overrides: list[str], folder: Path) -> list[str]:
    """The same suites on a checkpoint as it is."""
    other = ("model", "method", "scheme", "transform", "paths.results")
    same = [each for each in overrides if not each.startswith(other)]
    return [*same, "model=local", f"model.path={folder}", "method=none", "scheme=w16"]


def test_a_kept_change_reaches_the_table(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keeps = "never", "always"
    for keep in keeps:
        assert cli.main(["run", *overrides, f"transform.equalize.keep={keep}"]) == cli.OK
    table = capsys.readouterr().out
    assert "equalized" in table
    assert "kept" in table
    records = load_records(tmp_path / "results")
    made = {
        record.config["transform"][0]["keep"]: record
        for record in records
        if record.suite == QUANTIZATION
    }
    assert made.keys() == set(keeps)
    assert made["never"].cell_key != made["always"].cell_key
    for layer in made["always"].layers:
        assert re.match(r"equalize kept in front of \S+", layer.transforms[0])
        stored = 8 + (16 + 8) / 16 + 32 / layer.outputs
        assert layer.bits_per_weight == pytest.approx(stored)
    bits = {keep: record.cell.bits_per_weight for keep, record in made.items()}
    assert bits["always"] > bits["never"] == pytest.approx(8 + (16 + 8) / 16)
    figures = {
        record.config["transform"][0]["keep"]: record.metrics[0].value
        for record in records
        if record.suite == "perplexity"
    }
    assert figures["always"] == pytest.approx(figures["never"], rel=0.01)
    kept = [
        folder for folder in (tmp_path / "results" / "artifacts").iterdir()
        if "operators" in json.loads((folder / "config.json").read_text())["quantization_config"]
    ]  # fmt: skip
    assert len(kept) == 1
    assert cli.main(["inspect", str(kept[0])]) == cli.OK
    said = capsys.readouterr().out
    assert "GPTQ v2, input operators" in said
    assert "equalize in front of 12 layers, such as " in said
    assert f"{bits['always']:.3f}" in said
    out = str(tmp_path / "out")
    assert cli.main(["export", str(kept[0]), out, "--format", "gptq-v2"]) == cli.IMPOSSIBLE
    assert "stores only weights: quantize again with folded changes" in (capsys.readouterr().err)
    for stream in ("never", "always"):
        results = tmp_path / stream
        command = [*loaded(overrides, kept[0]), f"runtime.stream={stream}"]
        assert cli.main(["run", *command, f"paths.results={results}"]) == cli.OK
        (record,) = load_records(results)
        assert record.metrics[0].value == pytest.approx(figures["always"], rel=1e-5)
        assert record.cell.bits_per_weight == pytest.approx(bits["always"])


def test_a_transform_of_the_user_is_kept_and_loaded_by_its_cell_alone(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    (mine / "transform").mkdir(parents=True)
    (mine / "rotate.py").write_text(ROTATING.read_text())
    (mine / "transform" / "rotate.yaml").write_text("# Turned.\nrotate:\n  module: rotate\n")
    command = ["--config-dir", str(mine), *tiny_overrides, "suite=[perplexity_documents]"]
    command = [each for each in command if not each.startswith("suite.latency")]
    assert cli.main(["run", *command, "scheme=w8g16", "transform=[rotate]"]) == cli.OK
    assert "rotated" in capsys.readouterr().out
    made = next(r for r in load_records(tmp_path / "results") if r.suite == QUANTIZATION)
    assert all("rotate kept in front of" in str(layer.transforms) for layer in made.layers)
    (folder,) = (tmp_path / "results" / "artifacts").iterdir()
    assert cli.main(["plan", *loaded(command, folder)]) == cli.IMPOSSIBLE
    assert "rotate, which is not Bitsweep's own, stands in front" in capsys.readouterr().err


def test_a_word_that_keep_does_not_know_is_refused(
    overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", *overrides, "transform.equalize.keep=sometimes"]
    assert cli.main(command) == cli.IMPOSSIBLE
    assert (
        "keep=sometimes is unknown; choose one of never, where_needed, always"
        in capsys.readouterr().err
    )
