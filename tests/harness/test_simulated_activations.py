"""transform=[round_inputs]: from the command line to the table, and what is refused by name."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness import cli
from harness.records.record import QUANTIZATION
from harness.records.store import load_records
from harness.report.command import command
from quant.input_operator import InputOperator, KeptChange, attach
from quant.transforms import equalize, round_inputs

ROUNDED = ["method=gptq", "scheme=w8g16", "transform=[smoothquant,round_inputs]"]
STATIC = ["transform.round_inputs.bits=4", "transform.round_inputs.per=tensor"]


@pytest.fixture
def overrides(tiny_overrides: list[str]) -> list[str]:
    """Without the suites and the method."""
    own = ("suite=", "suite.latency", "method=")
    return [each for each in tiny_overrides if not each.startswith(own)]


def test_rounded_inputs_reach_the_table_under_the_name_of_their_grid(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = ["suite=[perplexity_documents]"]
    run = ["run", *overrides, *ROUNDED]
    assert cli.main([*run, *STATIC, *suites]) == cli.OK
    table = capsys.readouterr().out
    assert re.search(r"GPTQ SmoothQuant, simulated activations\S* +w8g16-a4_tensor", table)
    found = load_records(tmp_path / "results")
    (made,) = [record for record in found if record.suite == QUANTIZATION]
    assert made.cell.scheme == "w8g16-a4_tensor"
    assert made.cell.weights == "w8g16"
    for layer in made.layers:
        assert layer.scheme == "w8g16"
        stored = 8 + (16 + 8) / 16 + 32 / (layer.outputs * layer.inputs)
        assert layer.bits_per_weight == pytest.approx(stored)
        assert layer.transforms[-1].startswith("round_inputs kept in front of ")
    again = command([made])
    assert " scheme=w8g16 transform=[smoothquant,round_inputs] " in again
    assert " transform.round_inputs.bits=4 " in again

    (folder,) = (tmp_path / "results" / "artifacts").iterdir()
    out = str(tmp_path / "out")
    assert cli.main(["export", str(folder), out, "--format", "gptq-v2"]) == cli.IMPOSSIBLE
    assert "round_inputs in front of 12 layers" in capsys.readouterr().err
    # The artifact says what it is, whoever measures it.
    other = ("model", "paths.results")
    loaded = [each for each in overrides if not each.startswith(other)]
    loaded += ["model=local", f"model.path={folder}", "method=none", "scheme=w16"]
    loaded += [f"paths.results={tmp_path / 'loaded'}"]
    timed = "suite=[perplexity_documents,latency_quick]"
    assert cli.main(["plan", *loaded, timed]) == cli.IMPOSSIBLE
    assert "suite latency measures time, and activations (a4_tensor)" in capsys.readouterr().err
    assert cli.main(["plan", *loaded, "suite=[perplexity_documents]"]) == cli.OK
    planned = capsys.readouterr().out
    assert re.search(
        r"loaded GPTQ v2, input operators, simulated activations +w8g16-a4_tensor", planned
    )


def test_a_kernel_is_not_judged_by_steps_of_rounded_inputs() -> None:
    """A sum whose last bit differs may get another code, of which the bound knows nothing."""
    from harness.suites.comparing import _verdict

    model = nn.Linear(8, 8)
    far = SimpleNamespace(mean=SimpleNamespace(mean=1.0))
    context = SimpleNamespace(model=model, dtype="float32", kernel="cpu")
    assert _verdict(context, far)["parity"].startswith("BROKEN")
    attach(model, InputOperator([KeptChange(equalize.TRANSFORM, {"scale": torch.ones(8)})]))
    assert _verdict(context, far)["parity"].startswith("BROKEN")
    attach(model, InputOperator([KeptChange(round_inputs.TRANSFORM, {}, round_inputs.Options())]))
    assert _verdict(context, far)["parity"].startswith("not judged: rounded inputs ")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["suite=[perplexity_documents,latency_quick]"],
            "suite latency measures time, and activations (a8) are simulated here",
        ),
        (["suite=[kernels]"], "suite kernels measures time"),
        (["suite=[throughput]"], "suite throughput measures time"),
        (["transform=[round_inputs,hadamard]"], "list round_inputs last, and only one"),
        (["transform.round_inputs.bits=16"], "bits=16 is not between 2 and 8; use 8 or 4"),
        (["transform.round_inputs.per=channel"], "per=channel is unknown; use token"),
        (["calib.sequences=0"], "method=gptq needs calibration text"),
        (["method=none", "scheme=w16"], "prepares weights for a solver, but the cell has none"),
    ],
)
def test_what_cannot_be_is_refused_by_the_plan(
    overrides: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*overrides, *ROUNDED, "suite=[perplexity_documents]"]
    names = {each.partition("=")[0] for each in more}
    kept = [each for each in given if each.partition("=")[0] not in names]
    if more[0] in ("suite=[kernels]", "suite=[throughput]"):
        kept = [each for each in kept if not each.startswith("suite.")]
    assert cli.main(["plan", *kept, *more]) == cli.IMPOSSIBLE
    assert said in capsys.readouterr().err
