"""What transforms, and code that is not ours, do to the keys of a cell."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cell.cells import ResolvedCell
from harness.cell.keys import baseline_key
from harness.cell.resolve import resolve
from harness.config.compose import compose_cells
from harness.config.schema import CellConfig
from harness.errors import ConfigError
from tests.harness.cells import cell_of

Make = Callable[..., CellConfig]

FLIP = """
from quant.transforms.base import Transform

def change(group, options):
    return None

TRANSFORM = Transform(name="flip", label="flipped", change=change)
"""
TOY = """
from dataclasses import dataclass
from harness.report.columns import FigureColumn, SuiteTable
from harness.suites.base import Suite

@dataclass
class Config:
    pass

def run(context, config):
    return None

TABLE = SuiteTable(columns=(FigureColumn("toy", "toy"),))
SUITE = Suite(name="toy", version=1, config=Config, run=run, table=TABLE)
"""
EQUALIZE = {"equalize": {"module": "quant.transforms.equalize"}}


def test_the_order_of_transforms_is_in_the_key(tiny_cell: Make, tmp_path: Path) -> None:
    (tmp_path / "flip.py").write_text(FLIP)
    flip = {"flip": {"module": "flip"}}
    keys = []
    for chosen in ({}, EQUALIZE, {**EQUALIZE, **flip}, {**flip, **EQUALIZE}):
        config = tiny_cell("method=rtn")
        config.transform = chosen
        keys.append(resolve(config, tmp_path).keys.cell)
    assert len(set(keys)) == 4


def test_a_suite_s_code_is_in_its_own_key_alone(tiny_cell: Make, tmp_path: Path) -> None:
    plain = cell_of(tiny_cell("method=rtn")).keys
    found = []
    for text in (TOY, TOY + "# a comment\n"):
        (tmp_path / "toy.py").write_text(text)
        config = tiny_cell("method=rtn")
        config.suite["toy"] = {"module": "toy"}
        found.append(resolve(config, tmp_path).keys)
    assert found[0].cell == found[1].cell == plain.cell, "nothing else is made again"
    assert {name for name in found[0].stages if found[0].stages[name] != found[1].stages[name]} == {
        "toy"
    }


def test_cells_of_one_model_share_what_is_kept_of_it(tiny_cell: Make) -> None:
    def key(*overrides: str) -> str:
        cell = cell_of(tiny_cell(*overrides))
        return baseline_key(cell.model, cell.choices.runtime.device)

    shared = key("method=rtn", "scheme=w4")
    assert key("method=none", "scheme=w16") == shared
    assert key("method=rtn", "scheme=w3", "seed=5", "model.name=other") == shared
    assert key("method=rtn", "scheme=w4", "model.dtype=bfloat16") != shared
    assert key("method=rtn", "scheme=w4", "model.context=16") != shared


def test_an_input_of_a_suite_cannot_stand_for_the_model(tiny_cell: Make, tmp_path: Path) -> None:
    text = TOY.replace("table=TABLE", 'table=TABLE, inputs=lambda config, facts: {"model": "0f"}')
    (tmp_path / "toy.py").write_text(text)
    config = tiny_cell("method=rtn")
    config.suite["toy"] = {"module": "toy"}
    with pytest.raises(
        ConfigError, match=r"suite.toy: .* has an input named model, a name that records"
    ):
        resolve(config, tmp_path)


def test_arithmetic_is_in_the_key_of_what_is_calibrated(tiny_cell: Make) -> None:
    def cell(method: str, **given: str) -> ResolvedCell:
        config = tiny_cell(f"method={method}")
        config.method.update(given)
        return cell_of(config)

    auto, portable, fast = (cell("gptq", arithmetic=a) for a in ("auto", "portable", "fast"))
    assert auto.keys == portable.keys, "what the rule stands for is the same cell"
    assert auto.keys.cell != fast.keys.cell
    assert (auto.arithmetic, fast.arithmetic) == ("portable", "fast")
    assert auto.quantization.arithmetic == "portable"
    assert (auto.identity.options, fast.identity.options) == (None, "fast arithmetic")
    rounded = [cell("rtn", arithmetic=a) for a in ("auto", "fast")]
    assert rounded[0].keys == rounded[1].keys
    assert "arithmetic" not in rounded[0].keys.semantic["method"]


@pytest.mark.parametrize("method", ["gptq", "rtn", "none"])
def test_an_arithmetic_that_does_not_exist_is_refused(tiny_cell: Make, method: str) -> None:
    config = tiny_cell(f"method={method}")
    config.method["arithmetic"] = "slow"
    with pytest.raises(ConfigError, match="choose one of auto, portable, fast"):
        resolve(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=embedded", "suite=latency", "method=none", "scheme=w16"],
        ["model=dummy", "model.architecture=opt-125m", "suite=latency", "method=random"],
    ],
)
def test_an_arithmetic_moves_no_key_of_what_computes_nothing(overrides: list[str]) -> None:
    plain, given = (
        cell_of(compose_cells([*overrides, *more])[0].config)
        for more in ([], ["method.arithmetic=fast"])
    )
    assert given.keys == plain.keys
    assert given.identity == plain.identity


def test_one_arithmetic_is_given_to_a_whole_experiment() -> None:
    """Quickstart holds full precision, rounding and GPTQ."""
    cells = compose_cells(["experiment=quickstart", "method.arithmetic=fast"])
    moved = {}
    for config in {str(cell.config.method["solver"]): cell.config for cell in cells}.values():
        given = cell_of(config)
        config.method["arithmetic"] = "auto"
        moved[given.identity.method] = given.keys != cell_of(config).keys
    assert moved == {"none": False, "rtn": False, "gptq": True}
