"""The cost model against counting done another way, and the page that quotes it."""

from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost_model, scaling
from benchmarks.cost_model import BlockShape, Model
from quant.blocks import find_blocks
from quant.layout import learn_layout, run_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (cost_model.OPT_13B, 12.85e9),
        (cost_model.OPT_175B, 174.6e9),
        (cost_model.BLOOM_176B, 176.2e9),
        (cost_model.LLAMA_405B, 405.9e9),
    ],
)
def test_the_shapes_are_those_of_the_published_models(model: Model, parameters: float) -> None:
    weights = model.block.weights * model.blocks + model.outside
    assert weights == pytest.approx(parameters, rel=0.002)  # biases and norms are not counted


def test_operations_of_a_forward_pass_are_those_that_torch_counts() -> None:
    # torch counts the products of eager attention, and the masked half of them too.
    model, tokens = tiny_model("opt", attn_implementation="eager"), 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_model(model, torch.randint(3, 90, (2, tokens)))
    head = 2 * 2 * tokens * 32 * 96
    block = BlockShape(32, ((32, (32, 32, 32)), (32, (32,)), (32, (64,)), (64, (32,))))
    found = cost_model.work(block, 2 * tokens, tokens, 4, 4)
    attention = 2 * 2 * tokens * tokens * 32
    assert 3 * (found["forward"] + attention) + head == counter.get_total_flops()


def test_the_groups_are_those_that_a_model_shows() -> None:
    model = tiny_model("opt")
    layout = learn_layout(model, torch.arange(3, 20))
    shapes = {n: tuple(m.weight.shape) for n, m in find_blocks(model).modules[0].named_modules()
              if isinstance(m, torch.nn.Linear)}  # fmt: skip
    seen = tuple(
        (shapes[group[0]][1], tuple(shapes[name][0] for name in group))
        for group in layout.structures[0].groups
    )
    assert seen == ((32, (32, 32, 32)), (32, (32,)), (32, (64,)), (64, (32,)))
    narrow = cost_model.opt("", 32, 1).block.groups
    assert [len(outputs) for _, outputs in narrow] == [len(outputs) for _, outputs in seen]


def test_work_grows_as_the_page_says() -> None:
    def work(width: int, tokens: int) -> dict[str, float]:
        return cost_model.work(cost_model.opt("", width, 1).block, tokens, 2048, 2, 4)

    one, wide, long = work(8192, 10**5), work(16384, 10**5), work(8192, 2 * 10**5)
    assert wide["sweep"] == wide["factor"] * one["sweep"] / one["factor"] == 8 * one["sweep"]
    assert wide["forward"] / one["forward"] == pytest.approx(4, rel=0.05)
    assert long["forward"] == 2 * one["forward"]
    assert long["hessian"] == 2 * one["hessian"]
    assert {stage: long[stage] for stage in ("read", "factor", "sweep", "write")} == {
        stage: one[stage] for stage in ("read", "factor", "sweep", "write")
    }


def test_reading_costs_only_what_the_work_does_not_hide() -> None:
    work = dict.fromkeys(cost_model.STAGES, 10.0)
    rates = dict.fromkeys(cost_model.STAGES, 1.0)
    assert cost_model.seconds(work, rates)["read"] == 0
    assert cost_model.seconds({**work, "read": 65.0}, rates)["read"] == 15.0


def test_the_page_holds_the_predictions_of_the_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert scaling.replace_part(page, "predicted", scaling.predictions()) == page
    assert "not measurements" in scaling.predictions()


def test_a_small_case_is_measured_end_to_end() -> None:
    case = scaling.Case(128, 2, 512)
    got = scaling.in_fresh_process(case)
    assert got.weights > 2 * got.block
    assert {"read", "hessian", "solve", "write", "forward"} <= got.stages.keys()
    lines = scaling.memory_table({case: got}) + scaling.seconds_table(
        {case: got}, scaling.fitted_rates(case, got)
    )
    assert lines[-1].count(" / ") == 5
    first, second = lines[-1].split("|")[4].split(" / ")
    assert float(first) == float(second), "the case that rates come from is predicted exactly"
