"""Layers of several schemes, and schemes that are chosen, from the command line to the table."""

import re
import shlex
from pathlib import Path

import pytest

import quant
from harness import cli
from harness.cell.cells import ResolvedCell
from harness.cell.resolve import resolve
from harness.config.compose import compose_cells
from harness.records.record import Record
from harness.records.store import load_records
from harness.report.command import command


def quantized(results: Path) -> list[Record]:
    return [each for each in load_records(results) if each.suite == "quantization"]


def key_of(overrides: list[str]) -> str:
    (cell,) = compose_cells(overrides)
    found = resolve(cell.config)
    assert isinstance(found, ResolvedCell)
    return found.keys.cell


def test_layers_of_several_schemes_reach_the_table(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "scheme.layers={*.fc2: w4g16, *.0.self_attn.v_proj: w2g32}"
    overrides = [*tiny_overrides, "method=gptq", "scheme=w3g16", own]
    assert cli.main(["run", *overrides]) == cli.OK
    shown = capsys.readouterr().out
    assert "w3g16+w4g16+w2g32¹" in shown
    assert "¹ 9 layers w3g16, 2 layers w4g16, 1 layer w2g32" in shown
    (made,) = quantized(tmp_path / "results")
    named = {layer.name.partition("layers.")[2]: layer.scheme for layer in made.layers}
    assert (named["0.fc2"], named["1.fc2"], named["0.fc1"]) == ("w4g16", "w4g16", "w3g16")
    assert (named["0.self_attn.v_proj"], named["1.self_attn.v_proj"]) == ("w2g32", "w3g16")
    bits = sum(each.bits_per_weight * each.outputs * each.inputs for each in made.layers)
    weights = sum(each.outputs * each.inputs for each in made.layers)
    assert made.cell.bits_per_weight == pytest.approx(bits / weights)
    others = [each for each in load_records(tmp_path / "results") if each.suite != "quantization"]
    assert {each.cell.mixture for each in others} == {made.cell.mixture}
    (folder,) = (tmp_path / "results" / "artifacts").iterdir()
    held = {name: each.scheme.name for name, each in quant.load_weights(folder).items()}
    assert held == {layer.name: layer.scheme for layer in made.layers}
    # The command of the record chooses the same cell.
    words = shlex.split(command([made]))
    schemes = [word for word in words if word.startswith("scheme")]
    plain = [each for each in overrides if not each.startswith("scheme")]
    assert key_of([*plain, *schemes]) == made.cell_key


def test_a_chosen_scheme_is_measured(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ["scheme=auto", "scheme.auto.candidates=[w2g16,w3g16,w4g16]", "scheme.bits=4.3"]
    auto += ["scheme.auto.tokens=32"]
    overrides = [*tiny_overrides, "method=rtn", *auto]
    sweep = [*overrides, "scheme.auto.sensitivity=relative,kld"]
    assert cli.main(["run", "-m", *sweep]) == cli.OK
    shown = capsys.readouterr().out
    assert "auto4.3¹" in shown or "auto4.3²" in shown
    assert "auto4.3_kld" in shown
    shown = " ".join(shown.split())
    assert re.search(
        r"KLD in nats with scheme=auto: \S+ predicted \(sum over layers\), \S+ meas", shown
    )
    for made in quantized(tmp_path / "results"):
        assert made.cell.bits_per_weight <= 4.3
        costs = [layer.sensitivities[layer.scheme] for layer in made.layers]
        assert all(len(layer.sensitivities) == 3 for layer in made.layers)
        figures = {metric.name: metric.value for metric in made.metrics}
        assert figures["predicted_cost"] == pytest.approx(sum(costs))
        kld = made.cell.scheme == "auto4.3_kld"
        # Rounding has no loss of its own.
        assert ("measured_cost" in figures) == kld
        if kld:
            assert figures["measured_cost"] == pytest.approx(sum(costs), rel=0.9)
        words = [word for word in shlex.split(command([made])) if word.startswith("scheme")]
        plain = [each for each in overrides if not each.startswith("scheme")]
        assert key_of([*plain, *words]) == made.cell_key
    assert not list((tmp_path / "results" / "artifacts").glob(".*"))
