"""Changes kept in front of layers: the model computes the same, later layers see the same."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quant.calibrate.stream import Workplace, check_streaming, quantize_model
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.input_operator import (
    InputOperator,
    KeptChange,
    absorbed,
    attach,
    operator_bits,
    operator_of,
)
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer
from quant.transforms import equalize, round_inputs
from quant.transforms.base import Change, Group, Scaling, Transform
from tests.oracles.naive_hessians import naive_hessians
from tests.quant import rotating
from tests.quant.architectures import BLOCKS, random_windows, tiny_model, uneven_model

W8G16 = Scheme(8, group_size=16, scale_dtype="float32")
CPU = torch.device("cpu")
ROTATE = (rotating.TRANSFORM, None)


def equalizing(keep: str, **options: object) -> tuple[Transform, equalize.Options]:
    return equalize.TRANSFORM, equalize.Options(keep=keep, **options)


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def exact_solver() -> tuple[object, dict[str, Tensor], dict[str, Tensor]]:
    """GPTQ that notes the Hessian of each group and the weight of each layer."""
    hessians: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}

    def prepare(matrix: Tensor, options: gptq.Options, layer: Layer) -> object:
        hessians[layer.name] = matrix.clone()
        return gptq.prepare(matrix, options, layer)

    def solve(weight: Tensor, scheme: Scheme, factor, options, layer: Layer) -> object:
        weights[layer.name] = weight.clone()
        return gptq.solve(weight, scheme, factor, options, layer)

    return replace(gptq.SOLVER, prepare=prepare, solve=solve), hessians, weights


@pytest.mark.parametrize("name", ["opt-350m", "llama", "gpt2"])
def test_a_kept_rotation_on_a_fine_grid_gives_the_output_back(name: str) -> None:
    model, tokens = uneven_model(name), torch.stack(random_windows(2, seed=5))
    before, original = logits(model, tokens), copy.deepcopy(model)
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=(ROTATE,))
    result = quantize_model(model, random_windows(3), config)
    apart = (logits(model, tokens) - before).norm() / before.norm()
    assert apart < 0.05
    for layer in result.layers:
        linear = model.get_submodule(layer.name)
        moved = linear.weight - original.get_submodule(layer.name).weight
        assert moved.norm() > 0.5 * linear.weight.norm(), "the weight itself was rotated"
        said, _, those = layer.transforms[0].partition(" kept in front of ")
        assert said == "rotate"
        assert layer.name.split(f".{layer.block}.", 1)[1] in those.split(", ")
        stored = W8G16.bits_per_weight(layer.inputs) + 64 * layer.inputs / layer.outputs
        assert layer.bits_per_weight == pytest.approx(stored, rel=1e-12)
    check_streaming(model, *random_windows(2, seed=7))  # raises unless it is the plain pass


class Shifted(Scaling):
    """x' = x / scale - 1, which no weight alone makes up for."""

    def inputs(self, x: Tensor) -> Tensor:
        return super().inputs(x) - 1


@pytest.mark.parametrize("kind", ["rotated", "scaled twice", "shifted", "rounded", "few tokens"])
def test_weights_absorb_operators_while_many_tokens_pass(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(24, 10), torch.randn(5, 24, generator=generator)
    scale = {"scale": torch.rand(24, generator=generator) + 0.5}
    scaling = replace(equalize.TRANSFORM, rebuild=Scaling.rebuild)
    changes = [KeptChange(scaling, scale)] * 2
    if kind == "rotated":
        rotation = rotating.change(Group("", (), (), torch.eye(24), Scheme(4)), None)
        changes = [KeptChange(rotating.TRANSFORM, rotation.tensors())]
    if kind == "shifted":
        changes = [KeptChange(replace(scaling, rebuild=Shifted.rebuild), scale)]
    if kind == "rounded":
        changes = [KeptChange(round_inputs.TRANSFORM, {}, round_inputs.Options())]
    attach(linear, InputOperator(changes))
    block, weight = nn.Sequential(linear), linear.weight.detach().clone()
    with torch.no_grad():
        expected = block(x)
        with absorbed(block, 20 if kind == "few tokens" else 21):
            inside = block(x)
            taken = not linear._forward_pre_hooks
            assert taken == (not torch.equal(linear.weight, weight))
        assert torch.equal(block(x), expected)
    assert taken == (kind in ("rotated", "scaled twice"))
    assert torch.equal(linear.weight, weight)
    torch.testing.assert_close(inside, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("transform", [ROTATE, equalizing("always", powers_of_two=False)])
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_the_solver_sees_the_hessian_of_what_reaches_the_weight(
    name: str, transform: tuple[Transform, object], devices: int
) -> None:
    """In stages: every layer, whatever is kept in front of those before it."""
    model, windows = uneven_model(name), random_windows(4)
    solver, hessians, weights = exact_solver()
    original = copy.deepcopy(model)
    config = QuantizationConfig(
        solver, W8G16, gptq.Options(true_sequential=True), (transform,)
    )  # fmt: skip
    result = quantize_model(model, windows, config, None, Workplace((CPU,) * devices))
    assert len(result.layers) == len(weights)
    expected = naive_hessians(model, hessians, windows)
    for layer, hessian in hessians.items():
        torch.testing.assert_close(hessian.double(), expected[layer], rtol=2e-3, atol=2e-3)
        operator = operator_of(model.get_submodule(layer))
        assert operator is not None
        x = torch.randn(3, hessian.shape[0], dtype=torch.float64)
        torch.testing.assert_close(  # x W^T = x' W'^T, by the operator alone
            operator(x) @ weights[layer].double().T,
            x @ original.get_submodule(layer).weight.double().reshape(weights[layer].shape).T,
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip
    first = next(iter(hessians))
    plain = naive_hessians(original, [first], windows)[first]
    assert (plain - hessians[first]).norm() > 0.1 * plain.norm()


def test_where_needed_folds_what_norms_take_in_and_keeps_the_rest() -> None:
    model, tokens = uneven_model("llama"), torch.stack(random_windows(2, seed=5))
    found = {}
    for keep in ("never", "where_needed", "always"):
        same = copy.deepcopy(model)
        config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=(equalizing(keep),))
        result = quantize_model(same, random_windows(3), config)
        found[keep] = {layer.name.split(".")[-1]: layer.transforms[0] for layer in result.layers}
        apart = (logits(same, tokens) - logits(model, tokens)).norm()
        assert apart < 0.05 * logits(model, tokens).norm()
    assert found["never"]["q_proj"] == "equalize into input_layernorm"
    assert "equalize not applied" in found["never"]["down_proj"]
    assert found["where_needed"]["q_proj"] == "equalize into input_layernorm"
    assert found["where_needed"]["down_proj"] == "equalize kept in front of mlp.down_proj"
    every = {f"self_attn.{each}_proj" for each in "qkv"}
    said = found["always"]["q_proj"].removeprefix("equalize kept in front of ")
    assert set(said.split(", ")) == every
    assert found["always"]["k_proj"] == found["always"]["v_proj"] == found["always"]["q_proj"]


def test_after_a_kept_change_nothing_is_folded() -> None:
    """Folded into the norm it would come before the rotation, which is another change."""
    order = (ROTATE, equalizing("where_needed", powers_of_two=False))
    model, tokens = uneven_model("llama"), torch.stack(random_windows(2, seed=5))
    before = logits(model, tokens)
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=order)
    result = quantize_model(model, random_windows(3), config)
    for layer in result.layers:
        assert "equalize kept in front of " in layer.transforms[1]
        operator = operator_of(model.get_submodule(layer.name))
        assert [each.transform.name for each in operator.changes()] == ["rotate", "equalize"]
    assert (logits(model, tokens) - before).norm() < 0.05 * before.norm()


def test_a_model_without_a_norm_of_its_own_is_equalized_by_operators() -> None:
    """OPT-350M: every norm feeds the residual too."""
    model = uneven_model("opt-350m")
    config = QuantizationConfig(
        rtn.SOLVER, W8G16, transforms=(equalizing("where_needed"),)
    )  # fmt: skip
    result = quantize_model(model, random_windows(3), config)
    kept = [layer for layer in result.layers if " kept in front of " in layer.transforms[0]]
    assert len(kept) >= 5 * BLOCKS
    assert operator_bits(model) == sum(32 * layer.inputs for layer in kept)


def test_shared_weights_get_no_operator() -> None:
    model = uneven_model("llama")
    layers = model.model.layers
    layers[2].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=(equalizing("always"),))
    result = quantize_model(model, random_windows(3), config)
    left = {n.name for n in result.layers if "shares parameters" in n.transforms[0]}
    assert left == {f"model.layers.{i}.mlp.{n}_proj" for i in (1, 2) for n in ("gate", "up")}


def test_bfloat16_models_keep_scales_to_the_bit() -> None:
    """Powers of two change no bit; the operator's scale stays float32 when the model is cast."""
    model = uneven_model("opt-350m").to(torch.bfloat16)
    tokens = torch.stack(random_windows(2, seed=5))
    config = QuantizationConfig(gptq.SOLVER, W8G16, transforms=(equalizing("always"),))
    quantize_model(model, random_windows(3), config)
    operator = next(o for m in model.modules() if (o := operator_of(m)) is not None)
    scale = operator.changes()[0].tensors()["scale"].clone()
    expected = logits(model.float(), tokens)
    model.half().to(torch.bfloat16)
    found = operator.changes()[0].tensors()["scale"]
    assert found.dtype == torch.float32
    assert torch.equal(found, scale)
    assert torch.isfinite(logits(model, tokens)).all()
    assert (logits(model, tokens) - expected).norm() < 0.05 * expected.norm()


class Silent(Scaling):
    """A change that does not say what it is made of."""

    tensors = None  # type: ignore[assignment]


def silent(group: Group, _: object) -> Change:
    return Silent(torch.full((group.hessian.shape[0],), 2.0).double())


class Misnamed(Scaling):
    def tensors(self) -> dict[str, Tensor]:
        return {"in.out": self.scale}


def misnamed(group: Group, _: object) -> Change:
    return Misnamed(torch.full((group.hessian.shape[0],), 2.0).double())


def endless(group: Group, _: object) -> Change:
    """Finite as it is; it is kept in float32."""
    return Scaling(torch.full((group.hessian.shape[0],), 1e300, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (endless, "toy: scale of its change has NaN or infinite values"),
        (silent, "Silent does not provide its tensors: add a method tensors()"),
        (misnamed, "a tensor of its change is called 'in.out', which a module cannot have"),
    ],
)
def test_what_cannot_be_kept_is_refused(change: object, message: str) -> None:
    toy = replace(rotating.TRANSFORM, name="toy", change=change)
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=((toy, None),))
    with pytest.raises(QuantizationError, match=re.escape(message)):
        quantize_model(tiny_model("llama"), random_windows(3), config)


def fails(*_: object) -> Any:
    raise KeyError("matrix")


class Short(rotating.Rotation):
    """Its hessian has a fault of its own."""

    def hessian(self, matrix: Tensor) -> Tensor:
        return matrix[self.matrix]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rebuild": fails}, r"KeyError \('matrix'\)"),
        ({"change": fails}, r"KeyError \('matrix'\)"),
        ({"rebuild": lambda tensors: Short(tensors["matrix"])}, r"IndexError \(.*\)"),
    ],
)
def test_code_of_a_transform_that_raises_is_named_with_the_layer(
    changes: dict[str, Any], said: str
) -> None:
    toy = replace(rotating.TRANSFORM, **changes)
    # Only a transform behind it has a use for the Hessian in its coordinates.
    config = QuantizationConfig(
        rtn.SOLVER, W8G16, transforms=((toy, None), equalizing("where_needed"))
    )
    message = rf"layers\.0\.self_attn\.q_proj: transform rotate ended in {said}; correct its module"
    with pytest.raises(QuantizationError, match=message):
        quantize_model(tiny_model("llama"), random_windows(3), config)


class Late(rotating.Rotation):
    """Inputs of a pass cannot be changed."""

    def inputs(self, x: Tensor) -> Tensor:
        return x.double() @ self.matrix[1:]


def test_an_operator_that_raises_in_a_pass_is_named_with_the_block() -> None:
    toy = replace(rotating.TRANSFORM, rebuild=lambda tensors: Late(tensors["matrix"]))
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=((toy, None),))
    with pytest.raises(QuantizationError, match=r"layers\.0, changed by rotate, ended in Runtime"):
        quantize_model(tiny_model("llama"), random_windows(3), config)


def test_a_solver_that_raises_is_named_with_the_layer_and_memory_is_not_its_fault() -> None:
    def given(error: Exception) -> QuantizationConfig:
        def solve(*_: object) -> Any:
            raise error

        return QuantizationConfig(replace(rtn.SOLVER, name="toy", solve=solve), W8G16)

    message = r"q_proj: solver toy ended in ZeroDivisionError; correct its module"
    with pytest.raises(QuantizationError, match=message):
        quantize_model(tiny_model("llama"), [], given(ZeroDivisionError()))
    with pytest.raises(torch.OutOfMemoryError):
        quantize_model(tiny_model("llama"), [], given(torch.OutOfMemoryError("full")))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bool, torch.int64, torch.float64])
def test_tensors_of_any_type_are_kept_as_they_are(dtype: torch.dtype) -> None:
    kept = KeptChange(rotating.TRANSFORM, {"matrix": torch.ones(3).to(dtype)}).half()
    assert kept.tensors()["matrix"].dtype == dtype


class Asymmetric(rotating.Rotation):
    """Rotates the inputs and leaves the weights."""

    def weight(self, weight: Tensor) -> Tensor:
        return weight


def test_an_operator_that_changes_the_output_is_refused() -> None:
    toy = replace(rotating.TRANSFORM, rebuild=lambda tensors: Asymmetric(tensors["matrix"]))
    config = QuantizationConfig(rtn.SOLVER, W8G16, transforms=((toy, None),))
    with pytest.raises(QuantizationError, match=r"its output moved by .* when rotate changed"):
        quantize_model(tiny_model("llama"), random_windows(3), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rebuild": None}, r"rotate keeps changes \(always\), but has no rebuild"),
        ({"keep": lambda _: "often"}, "keep returned 'often'; return one of never, where_needed"),
    ],
)
def test_a_spec_that_cannot_keep_is_refused_with_the_configuration(
    changes: dict[str, object], message: str
) -> None:
    toy = replace(rotating.TRANSFORM, **changes)
    with pytest.raises(QuantizationError, match=message):
        QuantizationConfig(rtn.SOLVER, W8G16, transforms=((toy, None),))
