"""The cost model against counting done another way, and the page that quotes it."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost_model, scaling, scaling_time
from benchmarks.cost_model import BlockShape, Model
from benchmarks.scaling_time import Case
from quant import hessian, products
from quant.blocks import find_blocks
from quant.calibrate.structure import learn_structure, run_model
from quant.grid import find_grid
from quant.scheme import Scheme
from quant.solvers import columns as column_loop
from quant.solvers.columns import Groups
from quant.tiling import PANEL
from tests import warm
from tests.quant.architectures import tiny_model

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
    found = cost_model.work(block, 2 * tokens, tokens, 4, 4)["forward"]
    masked = 2 * 2 * tokens * tokens * 32
    whole = found["product"] + found["attention"] + masked
    assert 3 * whole + head == counter.get_total_flops()


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@pytest.fixture
def torch_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's operator is unknown to torch's counter, and so is ours."""
    monkeypatch.setattr(products, "_by_onednn", lambda *_: False)
    monkeypatch.setattr(products, "_gram_here", lambda: False)


@pytest.mark.usefixtures("torch_products")
def test_operations_of_a_hessian_are_those_that_torch_counts() -> None:
    total, rows = torch.zeros(1100, 1100), torch.zeros(10, 1100)
    assert counted(lambda: products.add_gram(total, rows)) == 20 * cost_model.gram_elements(1100)
    assert cost_model.gram_elements(8192) == 0.5625 * 8192**2


@pytest.mark.usefixtures("torch_products")
def test_operations_of_a_root_are_those_that_torch_counts() -> None:
    matrix = torch.eye(700)
    # torch counts the products, not the diagonal blocks' factors and inverses.
    diagonal = 2 * (256**3 + 256**3 + 188**3) / 3
    found = counted(lambda: hessian.blocked_root(matrix, 256))
    assert found == pytest.approx(cost_model.root_operations(700, 256) - diagonal)
    assert cost_model.root_operations(10**6, 256) == pytest.approx(10**18 / 3, rel=0.01)


@pytest.mark.usefixtures("torch_products")
def test_operations_of_a_look_back_are_those_that_torch_counts() -> None:
    factor = hessian.factorize(torch.eye(512))
    groups = Groups([find_grid(torch.rand(64, 512), Scheme(4), "")], [0] * 512, False, 512)
    blocks = [[(s, s + PANEL)] for s in range(0, 512, PANEL)]
    columns = torch.rand(512, 64)

    def run() -> None:
        column_loop._loop_over_panels(
            columns, factor, groups, Scheme(4), blocks, column_loop.plain_columns, ""
        )

    inverses = 4 * PANEL**3 / 3
    assert counted(run) == pytest.approx(cost_model.lookback_operations(512, 64) - inverses)


def test_the_groups_are_those_that_a_model_shows() -> None:
    model = tiny_model("opt")
    layout = learn_structure(model, torch.arange(3, 20))
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
    def work(width: int, tokens: int) -> cost_model.Work:
        return cost_model.work(cost_model.opt("", width, 1).block, tokens, 2048, 2, 4)

    one, wide, long = work(8192, 2**17), work(16384, 2**17), work(8192, 2**18)
    assert wide["loop"]["lookback"] == pytest.approx(8 * one["loop"]["lookback"], rel=0.02)
    assert wide["factor"]["factor"] == pytest.approx(8 * one["factor"]["factor"], rel=0.02)
    assert wide["forward"]["product"] == 4 * one["forward"]["product"]
    for stage in ("hessian", "forward"):
        assert long[stage] == {term: 2 * amount for term, amount in one[stage].items()}
    for stage in ("read", "factor", "loop", "write"):
        assert long[stage] == one[stage]


def test_reading_costs_only_what_the_work_does_not_hide() -> None:
    work = {stage: {stage: 10.0} for stage in cost_model.STAGES}
    work["read"] = {"disk": 10.0, "attach": 2.0}
    rates = dict.fromkeys((*cost_model.STAGES, "disk", "attach"), 1.0)
    assert cost_model.seconds(work, rates)["read"] == 2.0
    work["read"]["disk"] = 65.0
    # Behind what the block takes; writing the one before it takes no time of its own,
    assert cost_model.seconds(work, rates)["read"] == 2.0 + 65.0 - 42.0
    work["write"]["write"] = 64.0  # until it takes longer than all else.
    assert cost_model.seconds(work, rates)["read"] == 2.0 + 65.0 - 64.0


@pytest.mark.parametrize("write", [3.0, 30.0])
def test_a_run_is_a_pipeline_of_making_and_writing(write: float) -> None:
    made = dict.fromkeys(cost_model.STAGES[:-1], 2.0)
    free, kept = 0.0, 0.0  # when the run, and when the thread that writes, is done with a block
    for _ in range(7):
        free = max(free + sum(made.values()), kept)  # a block is handed over when the last is kept
        kept = free + write
    assert cost_model.whole({**made, "write": write}, 7) == kept
    assert cost_model.together({**made, "write": write}) == max(10.0, write)


def test_rates_that_made_the_seconds_are_found_again() -> None:
    true = {
        **scaling_time.FREE, "product": 2e11, "attention": 1e11, "element": 3e8, "factor": 4e10,
        "weight": 5e7, "lookback": 6e10, "panel": 9e2, "packed": 3e8, "layer": 1e3,
    }  # fmt: skip
    cases = (*scaling_time.FIT, *scaling_time.HELD_OUT)
    made = {case: scaling_time.predicted(case, true) for case in cases}
    found = scaling_time.fitted_rates({case: made[case] for case in scaling_time.FIT})
    assert found == pytest.approx(true, rel=1e-6)
    assert all(ratio.endswith(" 1.00 |") for ratio in table_lines(made, found))
    # The loop finds no rate below zero: what a term would give back is not believed.
    made = {case: {**spent, "factor": spent["factor"] * 1e-3 * case.width} for case, spent in
            made.items()}  # fmt: skip
    assert all(rate > 0 for rate in scaling_time.fitted_rates(made).values())


def table_lines(made: dict[Case, dict[str, float]], rates: dict[str, float]) -> list[str]:
    lines = scaling_time.report(made, rates)
    return [line for line in lines if line.startswith(("| fitted", "| held out"))]


def test_the_page_holds_the_predictions_of_the_command() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert scaling.replace_part(page, "predicted", scaling.predictions()) == page
    assert "not measurements" in scaling.predictions()


def test_a_small_case_is_measured_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        return warm.run(command[1:], check=True)

    monkeypatch.setattr(scaling.subprocess, "run", run)
    case = Case(128, 256, 2, 512)
    got = scaling.in_fresh_process(case)
    assert got.weights > 2 * got.block
    assert {"read", "hessian", "solve", "write", "forward"} <= got.stages.keys()
    assert scaling.memory_table({case: got})[2].startswith("| 2 | ")


def test_every_stage_of_a_block_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_time, "ROUNDS", 1)
    case = Case(128, 256, 3, 512)
    begin = time.process_time()
    spent = scaling_time.timed((case,), scaling.make_checkpoint)[case]
    assert all(spent[stage] > 0 for together in scaling_time.FITTED for stage in together)
    assert sum(spent.values()) < time.process_time() - begin
