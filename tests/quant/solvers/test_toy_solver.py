"""A solver that somebody else wrote: one spec is all that quant needs of it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quant
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.memory.limits import Limits
from quant.memory.plan import plan_quantization
from quant.memory.shapes import model_shape
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Layer, Memory, Solution, Solver
from tests.quant.architectures import random_windows, tiny_model

SCHEME = Scheme(4, group_size=16, scale_dtype="float32")


@dataclass(frozen=True)
class Options:
    """share  of the inputs, the ones of smallest mean square, whose weights become 0."""

    share: float = 0.25
    stages: bool = False


def in_stages(options: Options) -> bool:
    return options.stages


def solve(
    weight: Tensor, scheme: Scheme, prepared: Tensor, options: Options, layer: Layer
) -> Solution:
    """Prune, then round; `prepared` is the Hessian, as there is no prepare."""
    sizes = prepared.diagonal()
    smallest = sizes.argsort()[: int(options.share * len(sizes))]
    pruned = weight.index_fill(1, smallest, 0)
    solution = rtn.solve(pruned, scheme, layer=layer)
    said = f"{len(smallest)} of {len(sizes)} inputs pruned after {layer.tokens} tokens"
    return Solution(solution.weight, dead_columns=len(smallest), fallback=said)


TOY = Solver(
    name="toy",
    label="Toy",
    solve=solve,
    options=Options,
    needs_calibration=True,
    memory=Memory(weights=7, prepared=1, preparing=2),
    sequential=in_stages,
)


@pytest.mark.parametrize("stages", [False, True])
def test_it_quantizes_saves_and_loads(stages: bool, tmp_path: Path) -> None:
    model, tokens = tiny_model("llama"), torch.stack(random_windows(2, seed=5))
    config = QuantizationConfig(TOY, SCHEME, Options(0.5, stages))
    result = quantize_model(model, random_windows(4), config)
    assert {layer.method for layer in result.layers} == {"toy"}
    for layer in result.layers:
        assert layer.dead_columns == layer.inputs // 2
        assert (
            layer.fallback == f"{layer.inputs // 2} of {layer.inputs} inputs pruned after 96 tokens"
        )
        columns = result.weights[layer.name].dequantize().abs().sum(dim=0)
        assert int((columns == 0).sum()) == layer.inputs // 2
    hessian_passes = 4 if stages else 1  # q k v, o, gate up, down
    assert config.sequential == (hessian_passes == 4)
    quant.save(tmp_path / "a", model, result.weights, method={"name": "toy"})
    loaded = quant.load(tmp_path / "a", "reference", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4
        )


def test_its_figures_are_those_of_the_memory_plan() -> None:
    shape = model_shape(tiny_model("llama"))
    for arithmetic, number in (("fast", 4), ("portable", 8)):
        config = QuantizationConfig(TOY, SCHEME, arithmetic=arithmetic)
        plan = plan_quantization(shape, config, 96, 24, Limits())
        parts = {item.name: item.bytes for item in plan.items}
        assert parts["the largest layer in the solver"] == number * (7 * 32 * 48 + 48 * 48)
        assert parts["the largest factorization"] == number * 2 * 48 * 48
