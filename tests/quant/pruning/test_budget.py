"""Budgets: stored bits over the weights of the whole model, and what cannot be met."""

import pytest

from quant.coverage import Coverage
from quant.memory.shapes import ModelFacts, ModelShape
from quant.pruning.budget import Budget, budget_of
from quant.scheme import Scheme
from quant.transforms.block_removal import Options, removals, unfit

LAYERS = ((64, 64), (64, 64), (256, 64), (64, 256))
WEIGHTS = 2 * 64 * 64 + 2 * 256 * 64  # of a block
W4 = Scheme(4, group_size=64)  # 4 + (16 + 4) / 64 = 4.3125 bits


def facts(blocks: int = 10, kept: int = 0, quantized: int | None = None) -> ModelFacts:
    shape = ModelShape(
        layers=LAYERS,
        blocks=blocks,
        block_bytes=2 * WEIGHTS,
        outside_bytes=1000,
        hidden=64,
        vocabulary=100,
        itemsize=2,
        head=(100, 64),
    )
    found = blocks * WEIGHTS if quantized is None else quantized
    return ModelFacts(shape, "tiny", 512, Coverage(found, {"router": kept}, 16 * kept))


def test_bits_are_counted_over_the_whole_model() -> None:
    given = facts(kept=5000)
    head = Scheme(4, group_size=64, head=Scheme(8, group_size=32))
    found = budget_of(3.0, given.coverage, given.shape, [LAYERS] * 10, head)
    assert found.weights == 10 * WEIGHTS + 5000 + 6400
    assert found.whole == 4.3125 * 10 * WEIGHTS + 16 * 5000 + (8 + 24 / 32) * 6400
    assert found.excess == pytest.approx(found.whole - 3 * found.weights)


@pytest.mark.parametrize(
    ("bits", "count"), [(4.312, 1), (3.8813, 1), (3.8812, 2), (3.87, 2), (3.25, 3), (0.44, 9)]
)
def test_the_fewest_blocks_go_that_meet_the_budget(bits: float, count: int) -> None:
    budget = Budget(bits, 4.3125 * 10 * WEIGHTS, 10 * WEIGHTS)
    assert removals(budget, LAYERS, W4) == count
    assert unfit(Options(bits=bits), facts(), W4) is None
    left = [4.3125 * (10 - removed) / 10 for removed in (count - 1, count)]
    assert left[1] <= bits < left[0]


@pytest.mark.parametrize(
    ("bits", "given", "said"),
    [
        (
            4.3125,
            facts(),
            "would remove nothing: the whole model has 4.312 bits a weight at this scheme and its "
            "budget is bits=4.3125; use a smaller one, or leave the transform out",
        ),
        (
            0.43,
            facts(),
            "cannot meet its budget bits=0.43: at this scheme 0.4313 bits a weight are left when "
            "one block stays; use a scheme of fewer bits, or a larger budget",
        ),
        (
            3.25,
            facts(quantized=9 * WEIGHTS),
            "cannot say what a block of tiny takes, because its blocks differ; leave it out",
        ),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(bits: float, given: ModelFacts, said: str) -> None:
    assert unfit(Options(bits=bits), given, W4) == said
