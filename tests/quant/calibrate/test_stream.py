"""quantize_model: blocks are calibrated on the quantized blocks before, nothing else moves."""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from quant.blocks import find_blocks, linear_layers, weight_matrix
from quant.calibrate import collect
from quant.calibrate.stream import quantize_model, streamed_logits
from quant.config import QuantizationConfig
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer, Solver
from tests.oracles.naive_hessians import naive_hessians
from tests.quant.architectures import BLOCKS, CONFIGS, LINEARS_PER_BLOCK, random_windows, tiny_model

STAGES = ["structure", "capture", "read", "hessian", "solve", "write", "forward"]
SOLVERS = {"rtn": rtn.SOLVER, "gptq": gptq.SOLVER}
W4G16 = Scheme(bits=4, group_size=16, scale_dtype="float32")


def gptq_plan(
    scheme: Scheme = W4G16,
    solver: Solver = gptq.SOLVER,
    true_sequential: bool = False,
    batch_tokens: int = 2048,
) -> QuantizationConfig:
    options = gptq.Options(true_sequential=true_sequential)
    return QuantizationConfig(solver, scheme, options, batch_tokens=batch_tokens)


def plain_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def quantizable(model: PreTrainedModel) -> list[str]:
    blocks = find_blocks(model)
    return [
        f"{blocks.block_name(index)}.{layer}"
        for index, block in enumerate(blocks.modules)
        for layer in linear_layers(block)
    ]


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_is_quantized_in_its_blocks_and_nowhere_else(
    name: str, true_sequential: bool
) -> None:
    model = tiny_model(name)
    before = copy.deepcopy(model.state_dict())
    result = quantize_model(model, random_windows(4), gptq_plan(true_sequential=true_sequential))

    layers = quantizable(model)
    assert sorted(result.weights) == sorted(layers)
    assert [layer.name for layer in result.layers if layer.block == 1] != []
    assert len(result.layers) == BLOCKS * LINEARS_PER_BLOCK[name]
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {f"{layer}.weight" for layer in layers}
    for layer in layers:
        written = weight_matrix(model.get_submodule(layer))
        assert torch.equal(written, result.weights[layer].dequantize())

    tokens = torch.stack(random_windows(2, seed=5))
    assert torch.equal(streamed_logits(model, tokens), plain_logits(model, tokens))


class SolvedHessians:
    """GPTQ that records the Hessian with which each group of layers is solved."""

    def __init__(self) -> None:
        self.by_layer: dict[str, Tensor] = {}
        self.solver = replace(gptq.SOLVER, prepare=self._prepare)

    def _prepare(self, matrix: Tensor, options: gptq.Options, layer: Layer) -> object:
        self.by_layer[layer.name] = matrix.clone()
        return gptq.prepare(matrix, options, layer)


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("name", ["opt", "gpt2", "bloom", "llama", "falcon"])
def test_hessians_come_from_the_outputs_of_the_quantized_blocks_before(
    name: str, true_sequential: bool
) -> None:
    model = tiny_model(name)
    original = copy.deepcopy(model)
    windows = random_windows(3) + random_windows(1, length=11, seed=2)
    solved = SolvedHessians()
    scheme = Scheme(bits=2, group_size=16)  # coarse, so that quantized inputs are plainly different
    plan = gptq_plan(scheme, solved.solver, true_sequential, batch_tokens=60)
    quantize_model(model, windows, plan)

    # The oracle: the model with exactly those layers quantized that came before, run as it is.
    partly = copy.deepcopy(original)
    done_in_block: list[str] = []
    depth = find_blocks(model).name.count(".") + 2
    block, moved = "", []
    unquantized = naive_hessians(original, solved.by_layer, windows)
    for layer in solved.by_layer:  # one a group, in the order of solving
        if ".".join(layer.split(".")[:depth]) != block:
            take_weights(partly, model, layers_of(block, model))
            block = ".".join(layer.split(".")[:depth])
            done_in_block = []
        if true_sequential:
            take_weights(partly, model, done_in_block)
        expected = naive_hessians(partly, [layer], windows)[layer]
        torch.testing.assert_close(solved.by_layer[layer].double(), expected, rtol=2e-4, atol=2e-4)
        moved.append(((unquantized[layer] - expected).norm() / expected.norm()).item())
        done_in_block += same_input(partly, layers_of(block, model), layer, windows[0])
    assert moved[0] == 0
    assert moved[-1] > 0.02  # so the comparison above could have failed


def layers_of(block: str, model: PreTrainedModel) -> list[str]:
    return [name for name in quantizable(model) if name.startswith(f"{block}.")]


def take_weights(target: PreTrainedModel, source: PreTrainedModel, layers: list[str]) -> None:
    for layer in layers:
        weight = source.get_submodule(layer).weight
        target.get_submodule(layer).weight.data.copy_(weight.data)


def same_input(model: PreTrainedModel, layers: list[str], other: str, window: Tensor) -> list[str]:
    """The layers that read the same numbers as `other`, found without quant.calibrate.structure."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].clone()})
        )
        for name in layers
    ]
    plain_logits(model, window[None])
    for hook in hooks:
        hook.remove()
    return [layer for layer in layers if torch.equal(seen[layer], seen[other])]


def test_results_do_not_depend_on_how_windows_are_batched() -> None:
    windows = [w for n in (24, 7, 13) for w in random_windows(4, length=n, seed=n)]
    solved = SolvedHessians()
    found = []
    for batch_tokens in (1, 50, 10_000):
        plan = gptq_plan(W4G16, solved.solver, False, batch_tokens)
        quantize_model(tiny_model("llama"), windows, plan)
        found.append(dict(solved.by_layer))
    first_block = [layer for layer in found[0] if layer.startswith("model.layers.0.")]
    assert len(first_block) == 4
    for layer in first_block:
        for other in found[1:]:
            torch.testing.assert_close(found[0][layer], other[layer], rtol=1e-4, atol=1e-4)


def test_layers_with_the_same_input_share_one_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = collect.Hessian

    def hessian(inputs: int, layer: str, *where: Any, **given: Any) -> object:
        made.append(layer)
        return original(inputs, layer, *where, **given)

    monkeypatch.setattr(collect, "Hessian", hessian)
    quantize_model(tiny_model("opt"), random_windows(3), gptq_plan())
    one_block = ["self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"]
    assert made == [f"model.decoder.layers.{i}.{n}" for i in range(BLOCKS) for n in one_block]


def test_a_block_stops_early_only_when_its_layers_run_once() -> None:
    """A layer that runs twice sees both inputs; the second one must not be cut off."""
    model = tiny_model("opt")
    for block in model.model.decoder.layers:
        block.fc2.register_forward_hook(twice(block.fc1))
    result = quantize_model(model, random_windows(3, length=10), gptq_plan())
    tokens = {layer.name.split(".")[-1]: layer.tokens for layer in result.layers}
    assert tokens == {
        "q_proj": 30,
        "k_proj": 30,
        "v_proj": 30,
        "out_proj": 30,
        "fc1": 60,
        "fc2": 30,
    }


def twice(layer: nn.Linear) -> Callable[[nn.Module, object, Tensor], Tensor]:
    return lambda _, __, output: output + layer(output).mean()


def test_rounding_needs_no_calibration_and_one_short_pass() -> None:
    """The pass in which layers that never run are found, of a few tokens that nobody gave."""
    model = tiny_model("gpt2")
    original = copy.deepcopy(model)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, W4G16))
    assert seen == [4]
    for layer, weight in result.weights.items():
        expected = rtn.solve(weight_matrix(original.get_submodule(layer)), W4G16).weight
        assert torch.equal(weight.codes, expected.codes)
        assert torch.equal(weight.scale, expected.scale)
    assert {layer.loss for layer in result.layers} == {None}
    assert [stage.name for stage in result.stages] == ["read", "solve", "write"]


def test_gptq_is_closer_to_the_model_than_rounding() -> None:
    tokens = torch.stack(random_windows(8, seed=9))
    errors = {}
    for method in ("rtn", "gptq"):
        model = tiny_model("llama", num_hidden_layers=2)
        expected = plain_logits(model, tokens)
        scheme = Scheme(bits=3)
        quantize_model(model, random_windows(64), QuantizationConfig(SOLVERS[method], scheme))
        errors[method] = (plain_logits(model, tokens) - expected).square().mean().item()
    assert errors["gptq"] < 0.9 * errors["rtn"]


def test_what_is_reported_about_a_layer() -> None:
    model = tiny_model("opt")
    original = copy.deepcopy(model)
    seen: list[tuple[int, int, str]] = []
    result = quantize_model(
        model, random_windows(3, length=10), gptq_plan(), lambda *step: seen.append(step)
    )
    for layer in result.layers:
        numbers = [v for v in dataclasses.asdict(layer).values() if isinstance(v, float)]
        assert all(map(math.isfinite, numbers))
        weight = weight_matrix(original.get_submodule(layer.name)).double()
        quantized = result.weights[layer.name].dequantize().double()
        assert layer.weight_error == pytest.approx(
            ((weight - quantized).norm() / weight.norm()).item(), rel=1e-4
        )
        assert (layer.outputs, layer.inputs) == tuple(weight.shape)
        assert (layer.method, layer.scheme, layer.tokens) == ("gptq", W4G16.name, 30)
        assert layer.bits_per_weight == W4G16.bits_per_weight(layer.inputs)
        assert layer.loss is not None
        assert layer.damping is not None
    total = BLOCKS * LINEARS_PER_BLOCK["opt"]
    assert seen == [(i + 1, total, layer.name) for i, layer in enumerate(result.layers)]
    assert [s.name for s in result.stages] == STAGES
    assert all(stage.seconds > 0 and stage.peak_bytes for stage in result.stages)


def test_training_mode_is_off_while_calibrating_and_restored() -> None:
    model, reference = tiny_model("opt").train(), tiny_model("opt")  # dropout 0.1
    windows = random_windows(3)
    result = quantize_model(model, windows, gptq_plan())
    expected = quantize_model(reference, windows, gptq_plan())
    for layer, weight in expected.weights.items():
        assert torch.equal(result.weights[layer].codes, weight.codes)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_stay_in_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    result = quantize_model(model, random_windows(3), gptq_plan())
    for layer, weight in result.weights.items():
        written = weight_matrix(model.get_submodule(layer))
        assert written.dtype == dtype
        assert torch.equal(written, weight.dequantize().to(dtype))


def test_act_order_and_one_window_go_through() -> None:
    options = gptq.Options(act_order=True, damping=0.1)
    quantize_model(
        tiny_model("opt"), random_windows(1), QuantizationConfig(gptq.SOLVER, W4G16, options)
    )


@pytest.mark.realdata
def test_gptq_beats_rounding_on_a_trained_model(shared: Path) -> None:
    folder = shared / "models" / "tinystories-656k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = shared / "data" / "tinystories-valid" / "tinystories_valid_1M.txt"
    stories = [s.strip() for s in file.read_text(encoding="utf-8").split("<|endoftext|>")][1:-1]
    ids = [tokenizer(story, return_tensors="pt").input_ids[0][:128] for story in stories[:120]]
    evaluation, calibration = ids[:24], ids[24:]

    def loss(model: PreTrainedModel) -> float:
        with torch.no_grad():
            return sum(model(x[None], labels=x[None]).loss.item() for x in evaluation) / 24

    losses = {}
    for method in ("none", "gptq", "rtn"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if method != "none":
            quantize_model(model, calibration, QuantizationConfig(SOLVERS[method], Scheme(bits=3)))
        losses[method] = loss(model)
    assert losses["none"] < losses["gptq"] < losses["rtn"] - 0.05


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_last_group_of_a_row_may_be_short(method: str) -> None:
    """Groups of 20 divide neither the 32 nor the 48 inputs of this model."""
    model = tiny_model("llama")
    how = QuantizationConfig(SOLVERS[method], Scheme(5, 20))
    result = quantize_model(model, random_windows(4), how)
    for layer in result.layers:
        weight = result.weights[layer.name]
        assert weight.scale.shape == (layer.outputs, -(-layer.inputs // 20))
        assert layer.bits_per_weight == 5 + 21 * -(-layer.inputs // 20) / layer.inputs
        assert torch.equal(model.get_submodule(layer.name).weight, weight.dequantize())
    assert {layer.inputs for layer in result.layers} == {32, 48}
