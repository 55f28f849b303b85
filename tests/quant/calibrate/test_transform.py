"""Transforms in the stream: the model computes the same, the solver sees the new coordinates."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import quant
from quant.calibrate.capture import capture, run_block
from quant.calibrate.collect import Collector
from quant.calibrate.devices import DeviceWorkers
from quant.calibrate.stream import Workplace, quantize_model
from quant.calibrate.structure import evaluation, learn_structure
from quant.calibrate.transform import BlockTransformer, Changed
from quant.calibrate.windows import make_batches
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer
from quant.transforms import awq, equalize
from quant.transforms.base import Change, Group, Scaling, Transform
from tests.oracles.naive_hessians import naive_hessians
from tests.quant.architectures import BLOCKS, CONFIGS, random_windows, tiny_model, uneven_model

W4G16 = Scheme(4, group_size=16, scale_dtype="float32")
EQUALIZE = ((equalize.TRANSFORM, equalize.Options()),)
ANY_SCALE = equalize.Options(strength=1.0, powers_of_two=False)
CPU = torch.device("cpu")


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def transform(
    model: PreTrainedModel,
    transforms: tuple[tuple[Transform, object], ...],
    hessians: dict[str, Tensor] | None = None,
) -> dict[str, Changed]:
    """Only transform the blocks of a model, all layers of a block at once.

    `hessians` gets what the solver would be given for every layer.
    """
    windows, found = random_windows(4), {}
    (batch,) = make_batches(windows, 1000)
    model_structure = learn_structure(model, windows[0])
    with evaluation(model), DeviceWorkers([CPU]) as workers:
        captured = capture(model, model_structure, [batch.tokens])
        hidden = captured.hidden[0]
        for index, structure in enumerate(model_structure.structures):
            block, name = (
                model_structure.blocks.modules[index],
                model_structure.blocks.block_name(index),
            )
            call = captured.calls[index][0]
            collector = Collector(
                block, name, structure.groups, False, workers, with_statistics=True
            )
            collector.begin(batch)
            run_block(block, structure, call, hidden)
            workers.settle()
            collector.close()

            def again(block=block, structure=structure, call=call, hidden=hidden) -> Tensor:
                return run_block(block, structure, call, hidden)

            worker = BlockTransformer(
                transforms, W4G16, model, block, name, frozenset(), hidden, again
            )
            done = worker.apply(collector.hessians, collector.statistics)
            for names, changed in done.items():
                found |= {f"{name}.{layer}": changed for layer in names}
                if hessians is not None:
                    matrix = changed.hessian(collector.hessians[names].matrix())
                    hessians |= {f"{name}.{layer}": matrix for layer in names}
            hidden = again()
    return found


# Where norms feed layers alone; the rest is made by operators, activations or several readers.
CHANGED = {
    "opt": ("q_proj", "k_proj", "v_proj", "fc1"),
    "opt-350m": (),
    "bloom": ("query_key_value", "dense_h_to_4h"),
    "gpt2": ("c_attn", "c_fc"),
    "gpt-neox": ("query_key_value", "dense_h_to_4h"),
    "phi": ("q_proj", "k_proj", "v_proj", "fc1"),
    "falcon": ("query_key_value", "dense_h_to_4h"),
    "falcon-alibi": ("query_key_value", "dense_h_to_4h"),
}
LLAMA_LIKE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


@pytest.mark.parametrize("name", CONFIGS)
def test_powers_of_two_leave_every_bit_of_the_logits(name: str) -> None:
    model, tokens = uneven_model(name), torch.stack(random_windows(2, seed=5))
    before, weights = logits(model, tokens), copy.deepcopy(model.state_dict())
    found = transform(model, EQUALIZE)
    changed = {layer.split(".")[-1] for layer, done in found.items() if done.changes}
    assert changed == set(CHANGED.get(name, LLAMA_LIKE))
    moved = [n for n, value in model.state_dict().items() if not torch.equal(value, weights[n])]
    assert bool(moved) == bool(changed)
    if name.startswith("gemma"):  # 1 + weight is not stored: it rounds
        torch.testing.assert_close(logits(model, tokens), before, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_any_scale_leaves_the_model_as_it_is_in_float64(name: str) -> None:
    model, tokens = uneven_model(name).double(), torch.stack(random_windows(2, seed=5))
    before = logits(model, tokens)
    transform(model, ((equalize.TRANSFORM, ANY_SCALE),))
    torch.testing.assert_close(logits(model, tokens), before, rtol=1e-6, atol=1e-6)


# What makes the inputs that no norm makes, where something takes a scaling in: values, whether or
# not queries share them and whatever matrix they are part of; what a gate is multiplied by; ReLU.
FURTHER = {
    "opt": {"out_proj": "self_attn.v_proj", "fc2": "fc1"},
    "opt-350m": {"out_proj": "self_attn.v_proj", "fc2": "fc1"},
    "bloom": {"dense": "self_attention.query_key_value"},
    "gpt2": {"attn.c_proj": "attn.c_attn"},
    "gpt-neox": {"dense": "attention.query_key_value"},
    "phi": {"dense": "self_attn.v_proj"},
    "falcon": {"dense": "self_attention.query_key_value"},
    "falcon-alibi": {"dense": "self_attention.query_key_value"},
}
GATED = {"o_proj": "self_attn.v_proj", "down_proj": "mlp.up_proj"}


@pytest.mark.parametrize("name", CONFIGS)
def test_awq_goes_into_norms_and_further_and_leaves_the_model_as_it_is(name: str) -> None:
    model, tokens = uneven_model(name), torch.stack(random_windows(2, seed=5))
    before, hessians = logits(model, tokens), {}
    found = transform(model, ((awq.TRANSFORM, awq.Options(steps=4)),), hessians)
    after = logits(model, tokens)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    further, places = FURTHER.get(name, GATED), set()
    for layer, done in found.items():
        (place,) = [end for end in further if layer.endswith(f".{end}")] or [None]
        if done.notes == ["awq not applied: it finds nothing to change"]:
            continue
        if place is not None:
            assert done.notes == [f"awq into {further[place]}"]
            places.add(place)
        elif layer.endswith(CHANGED.get(name, LLAMA_LIKE)):
            assert "norm" in done.notes[0] or "ln_" in done.notes[0]
        else:
            assert done.notes[0].startswith("awq not applied: ")
            assert done.notes[0].endswith("and no layer further in front takes a scaling in")
    assert places == further.keys()
    # What the solver is given is what now reaches the weights.
    for layer, expected in naive_hessians(model, hessians, random_windows(4)).items():
        apart = torch.linalg.vector_norm(hessians[layer].double() - expected)
        assert apart <= 1e-4 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_powers_of_two_leave_every_bit_in_half_precision(dtype: torch.dtype) -> None:
    model, tokens = uneven_model("llama").to(dtype), torch.stack(random_windows(2, seed=5))
    before = logits(model, tokens)
    assert any(done.changes for done in transform(model, EQUALIZE).values())
    assert torch.equal(logits(model, tokens), before)


class Recorded:
    """GPTQ that records the Hessian of each group, and the weights that it is given."""

    def __init__(self) -> None:
        self.hessians: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.solver = replace(gptq.SOLVER, prepare=self._prepare, solve=self._solve)

    def _prepare(self, matrix: Tensor, options: gptq.Options, layer: Layer) -> object:
        self.hessians[layer.name] = matrix.clone()
        return gptq.prepare(matrix, options, layer)

    def _solve(self, weight: Tensor, scheme: Scheme, factor, options, layer: Layer) -> object:
        self.weights[layer.name] = weight.clone()
        return gptq.solve(weight, scheme, factor, options, layer)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("options", [equalize.Options(), ANY_SCALE])
@pytest.mark.parametrize("name", ["opt", "llama", "gemma2", "phi"])
def test_the_solver_sees_the_hessian_of_the_transformed_model(
    name: str, options: equalize.Options, devices: int
) -> None:
    """Done in stages, the finished model feeds each layer what its Hessian was made of."""
    model, windows, recorded = uneven_model(name), random_windows(4), Recorded()
    original = copy.deepcopy(model)
    config = QuantizationConfig(
        recorded.solver, W4G16, gptq.Options(true_sequential=True),
        ((equalize.TRANSFORM, options),),
    )  # fmt: skip
    result = quantize_model(model, windows, config, None, Workplace((CPU,) * devices))
    changed = {layer.name for layer in result.layers if "equalize into" in str(layer.transforms)}
    assert len(changed) >= 4 * BLOCKS
    expected = naive_hessians(model, recorded.hessians, windows)
    for layer, hessian in recorded.hessians.items():
        torch.testing.assert_close(hessian.double(), expected[layer], rtol=2e-3, atol=2e-3)
    first = next(layer for layer in recorded.hessians if layer in changed)
    plain = naive_hessians(original, [first], windows)[first]
    assert (plain - recorded.hessians[first]).norm() > 0.1 * plain.norm()
    for layer, weight in recorded.weights.items():
        same = torch.equal(weight, original.get_submodule(layer).weight.detach())
        assert same == (layer not in changed)
    assert "transform" in {stage.name for stage in result.stages}


def test_two_transforms_follow_one_another() -> None:
    """The second sees the coordinates that the first one made."""
    seen: list[Tensor] = []

    def look(group: Group, _: object) -> None:
        seen.append(group.hessian.diagonal().clone())

    model = uneven_model("llama")
    look_at = Transform("look", "looked at", look)
    full = equalize.Options(strength=1.0)
    found = transform(model, ((look_at, look_at.options()), (equalize.TRANSFORM, full),
                              (look_at, look_at.options())))  # fmt: skip
    assert found["model.layers.0.self_attn.q_proj"].notes == [
        "look not applied: it finds nothing to change",
        "equalize into input_layernorm",
        "look not applied: it finds nothing to change",
    ]
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert before.max() / before.min() > 30
        assert after.max() / after.min() <= 16 * (1 + 1e-4)  # both ends off by half a power of two


def test_rounding_with_a_transform_is_calibrated_and_differs() -> None:
    codes = []
    for transforms in ((), EQUALIZE):
        config = QuantizationConfig(rtn.SOLVER, Scheme(4), transforms=transforms)
        result = quantize_model(uneven_model("llama"), random_windows(8), config)
        assert {layer.tokens for layer in result.layers} == {8 * 24 if transforms else 0}
        codes.append(result.weights["model.layers.0.self_attn.q_proj"].codes)
    assert not torch.equal(*codes)


def test_records_say_what_was_left_as_it_is() -> None:
    config = QuantizationConfig(gptq.SOLVER, W4G16, transforms=EQUALIZE)
    result = quantize_model(uneven_model("opt"), random_windows(3), config)
    said = {layer.name.split(".")[-1]: layer.transforms for layer in result.layers}
    assert said["q_proj"] == ["equalize into self_attn_layer_norm"]
    assert said["fc2"] == [
        "equalize not applied: activation_fn, which makes its input, has no parameters"
    ]


def test_a_transform_that_changes_no_layer_is_refused() -> None:
    """The norms of OPT-350M feed the residual too: figures would be those without it."""
    config = QuantizationConfig(gptq.SOLVER, W4G16, transforms=EQUALIZE)
    with pytest.raises(QuantizationError, match="equalize changed no layer of this model") as said:
        quantize_model(uneven_model("opt-350m"), random_windows(3), config)
    assert "aten.add.Tensor also reads what self_attn_layer_norm makes" in str(said.value)
    assert "no module of the block makes its input" in str(said.value)


def test_shared_norms_and_layers_are_left_as_they_are() -> None:
    model = uneven_model("llama")
    layers = model.model.layers
    layers[1].input_layernorm = layers[0].input_layernorm
    layers[2].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    found = transform(model, EQUALIZE)
    left = {name for name, done in found.items() if "shares parameters" in str(done.notes)}
    assert left == {
        *(f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qkv"),
        *(f"model.layers.{i}.mlp.{n}_proj" for i in (1, 2) for n in ("gate", "up")),
    }


@dataclass(frozen=True)
class Lying(Scaling):
    """Changes the weights in another way than the inputs."""

    def weight(self, weight: Tensor) -> Tensor:
        return weight / self.scale.to(weight)


def lie(group: Group, _: object) -> Change:
    return Lying(torch.linspace(0.5, 2, group.hessian.shape[0]).double())


def test_a_block_that_no_longer_computes_the_same_is_refused() -> None:
    config = QuantizationConfig(rtn.SOLVER, W4G16, transforms=((Transform("lie", "l", lie), None),))
    message = r"model\.layers\.0: its output moved by .* when lie changed .*; quantize this model"
    with pytest.raises(QuantizationError, match=message):
        quantize_model(tiny_model("llama"), random_windows(3), config)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "gemma2"])
def test_the_artifact_holds_what_the_transform_changed(name: str, tmp_path: Path) -> None:
    model, tokens = uneven_model(name), torch.stack(random_windows(2, seed=5))
    before = copy.deepcopy(model.state_dict())
    config = QuantizationConfig(gptq.SOLVER, W4G16, transforms=EQUALIZE)
    result = quantize_model(model, random_windows(4), config)
    beside = {
        key for key, value in model.state_dict().items()
        if not torch.equal(value, before[key]) and key.rpartition(".")[0] not in result.weights
    }  # fmt: skip
    assert beside
    quant.save(tmp_path / "a", model, result.weights, method={"name": "gptq"})
    loaded = quant.load(tmp_path / "a", "reference", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded, tokens), logits(model, tokens), rtol=1e-4, atol=1e-4)
