"""The reference stream: layers of the full-precision model, seen beside the quantized ones."""

import copy
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.blocks import find_blocks, linear_layers
from quant.calibrate.collect import Collector
from quant.calibrate.devices import DeviceWorkers
from quant.calibrate.stream import QuantizationResult, Workplace, quantize_model
from quant.calibrate.transform import Changed
from quant.calibrate.windows import Batch
from quant.config import QuantizationConfig
from quant.errors import ModelStructureError
from quant.experts import unfuse
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import gptaq, gptq, qronos
from quant.solvers.base import Layer
from quant.transforms import equalize
from quant.transforms.base import Group, Scaling
from tests.quant import rotating
from tests.quant.architectures import BLOCKS, random_windows, tiny_model, uneven_model
from tests.quant.mixtures import tiny_mixture

COARSE = Scheme(2, group_size=16)  # so that inputs behind quantized layers are plainly different
CPU = torch.device("cpu")
TRANSFORMS = {
    "none": (),
    "folded": ((equalize.TRANSFORM, None),),
    "kept": ((rotating.TRANSFORM, None),),
}


class SolvedDrifts:
    """Qronos that records the drift and the Hessian of each group of layers."""

    def __init__(self) -> None:
        self.drifts: dict[str, Tensor | None] = {}
        self.hessians: dict[str, Tensor] = {}
        self.solver = replace(qronos.SOLVER, prepare=self._prepare, weighted_drift=False)

    def _prepare(
        self, matrix: Tensor, options: gptq.Options, layer: Layer, drift: Tensor | None
    ) -> object:
        self.drifts[layer.name] = None if drift is None else drift.clone()
        self.hessians[layer.name] = matrix.clone()
        return qronos.prepare(matrix, options, layer, drift)


def inputs_of(
    model: PreTrainedModel, layers: Iterable[str], windows: list[Tensor]
) -> dict[str, Tensor]:
    """What each layer reads, float64 [tokens, in], in plain passes of the whole model."""
    seen: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, rows=rows: rows.append(args[0].double().flatten(0, -2))
        )
        for layer, rows in seen.items()
    ]
    with torch.no_grad():
        for window in windows:
            model(window[None])
    for hook in hooks:
        hook.remove()
    return {layer: torch.cat(rows) for layer, rows in seen.items()}


def block_of(layer: str, model: PreTrainedModel) -> str:
    depth = find_blocks(model).name.count(".") + 2
    return ".".join(layer.split(".")[:depth])


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("arithmetic", ["fast", "portable"])
@pytest.mark.parametrize("name", ["opt", "gpt2", "llama"])
def test_drifts_are_those_of_an_untouched_model_beside_the_quantized_one(
    name: str, arithmetic: str, true_sequential: bool
) -> None:
    model = tiny_model(name)
    original = copy.deepcopy(model)
    windows = random_windows(3) + random_windows(1, length=11, seed=2)
    solved = SolvedDrifts()
    config = QuantizationConfig(
        solved.solver,
        COARSE,
        qronos.Options(true_sequential=true_sequential),
        batch_tokens=60,
        arithmetic=arithmetic,
    )
    quantize_model(model, windows, config)

    reference = inputs_of(original, solved.drifts, windows)
    partly, order = copy.deepcopy(original), list(solved.drifts)
    largest = 0.0
    for at, layer in enumerate(order):  # one a group, in the order of solving
        # The model with exactly those layers quantized that came before.
        for done in {block_of(each, model) for each in order[:at]}:
            if done != block_of(layer, model) or true_sequential:
                whole = done != block_of(layer, model)
                before = order[:at] if not whole else None
                take(partly, model, done, before)
        quantized = inputs_of(partly, [layer], windows)[layer]
        expected = (reference[layer] - quantized).T @ quantized * (2 / len(windows))
        drift = solved.drifts[layer]
        if drift is None:
            assert not expected.any(), layer
            assert at == 0 or not true_sequential
            continue
        tight = 1e-4  # the plain passes are in float32
        scale = float(solved.hessians[layer].abs().max())
        torch.testing.assert_close(drift.double(), expected, rtol=tight, atol=tight * scale)
        largest = max(largest, float(expected.norm() / solved.hessians[layer].norm()))
    assert largest > 0.02  # so the comparison above could have failed


def take(
    target: PreTrainedModel,
    source: PreTrainedModel,
    block: str,
    leaders: list[str] | None,
) -> None:
    """Give `target` the weights of a block; leaders: only of layers that read what these read."""
    module = source.get_submodule(block)
    for name in linear_layers(module):
        full = f"{block}.{name}"
        if leaders is not None and not any(
            same_inputs(source, full, leader) for leader in leaders if leader.startswith(block)
        ):
            continue
        weight = source.get_submodule(full).weight
        target.get_submodule(full).weight.data.copy_(weight.data)


def same_inputs(model: PreTrainedModel, one: str, other: str) -> bool:
    seen = inputs_of(model, {one, other}, random_windows(1))
    return torch.equal(seen[one], seen[other])


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("kind", ["folded", "kept"])
def test_drifts_are_in_the_coordinates_of_the_hessian(kind: str, true_sequential: bool) -> None:
    """Where x' = x T is changed, it is changed in both models."""
    model, windows, solved = uneven_model("llama"), random_windows(3), SolvedDrifts()
    original = copy.deepcopy(model)
    options = qronos.Options(true_sequential=true_sequential)
    config = QuantizationConfig(solved.solver, COARSE, options, TRANSFORMS[kind])
    quantize_model(model, windows, config)

    block = f"model.layers.{BLOCKS - 1}"
    layer = (
        f"{block}.self_attn.q_proj"  # reads what the blocks before it made, however it is solved
    )
    drift, hessian = solved.drifts[layer], solved.hessians[layer]
    quantized = inputs_of(model, [layer], windows)[layer]  # behind the norm or operator: x~ T
    if kind == "kept":
        change = rotating.change(group_like(hessian), None).matrix
    else:
        norms = [
            each.get_submodule(f"{block}.input_layernorm").weight for each in (model, original)
        ]
        change = torch.diag(norms[0] / norms[1]).double()
        assert not torch.equal(*norms)
    full = inputs_of(original, [layer], windows)[layer] @ change
    expected = (full - quantized).T @ quantized * (2 / len(windows))
    scale = float(hessian.abs().max())
    torch.testing.assert_close(drift.double(), expected, rtol=1e-4, atol=1e-4 * scale)
    assert expected.norm() > 0.02 * hessian.norm()


def group_like(hessian: Tensor) -> Group:
    return Group("", (), (), hessian, Scheme(4))


def test_a_drift_changes_coordinates_though_it_is_not_symmetric() -> None:
    torch.manual_seed(0)
    drift = torch.randn(6, 6, dtype=torch.float64)
    rotation = rotating.change(group_like(drift), None)
    scaling = Scaling(torch.tensor([1.0, 2, 4, 0.5, 1, 3], dtype=torch.float64))
    found = Changed((rotation, scaling)).drift(drift)
    t = rotation.matrix @ torch.diag(1 / scaling.scale)
    torch.testing.assert_close(found, t.T @ drift @ t)
    assert not torch.allclose(found, found.T)


def test_a_reference_pass_sees_neither_what_was_solved_nor_operators() -> None:
    """With stages and operators in front of solved layers, the block gets its values back."""
    model = uneven_model("llama")
    config = QuantizationConfig(
        qronos.SOLVER, COARSE, qronos.Options(true_sequential=True), TRANSFORMS["kept"]
    )
    result = quantize_model(model, random_windows(3), config)
    for name, weight in result.weights.items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.weight, weight.dequantize()), name
        assert sum("_operate" in hook.__name__ for hook in layer._forward_pre_hooks.values()) == 1
        assert len(layer._forward_pre_hooks) == 1


@pytest.mark.parametrize("true_sequential", [False, True])
@pytest.mark.parametrize("solver", [gptaq.SOLVER, qronos.SOLVER], ids=["gptaq", "qronos"])
def test_two_devices_and_disk_give_the_result_of_one(
    solver: object, true_sequential: bool, tmp_path: object
) -> None:
    config = QuantizationConfig(
        solver, COARSE, solver.options(true_sequential=true_sequential), batch_tokens=50
    )

    def made(place: Workplace) -> QuantizationResult:
        return quantize_model(tiny_model("llama"), random_windows(5), config, None, place)

    one = made(Workplace((CPU,)))
    for place in (Workplace((CPU, CPU)), Workplace((CPU,), "disk", tmp_path / "states")):
        other = made(place)
        for name, weight in one.weights.items():
            assert torch.equal(weight.codes, other.weights[name].codes), name
    assert not (tmp_path / "states").exists()


def test_the_first_block_is_solved_as_gptq_does() -> None:
    """Before anything is quantized both models are one: no drift, and GPTQ's own codes."""
    found = {}
    for solver in (gptq.SOLVER, gptaq.SOLVER, qronos.SOLVER):
        config = QuantizationConfig(solver, COARSE, solver.options(true_sequential=False))
        found[solver.name] = quantize_model(tiny_model("llama"), random_windows(3), config)
    for name, weight in found["gptq"].weights.items():
        for other in ("gptaq", "qronos"):
            same = torch.equal(weight.codes, found[other].weights[name].codes)
            assert same == name.startswith("model.layers.0."), name


def test_a_mixture_is_refused_by_name_before_anything_is_done() -> None:
    model = tiny_mixture("mixtral")
    unfuse(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelStructureError, match=r"layers\.0\..*experts\.0.*method=gptaq.*gptq"):
        quantize_model(model, random_windows(2), QuantizationConfig(gptaq.SOLVER, COARSE))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_inputs_without_a_counterpart_are_refused() -> None:
    block = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8)})
    batch = Batch((0,), torch.zeros(1, 4, dtype=torch.int64))
    with DeviceWorkers([CPU]) as workers, torch.no_grad():
        collector = Collector(block, "block", [("a",)], False, workers)
        collector.begin(batch, {("a",): [torch.ones(1, 3, 8)]})
        with pytest.raises(ModelStructureError, match=r"block\.a reads \[1, 4, 8\] .* \[1, 3, 8\]"):
            block["a"](torch.ones(1, 4, 8))
        collector.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_drift_is_the_product_of_differences(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    batches = [(torch.randn(2, 5, 7).to(dtype), torch.randn(2, 5, 7).to(dtype)) for _ in range(3)]
    hessian = Hessian(7, dtype=torch.float64)
    for full, quantized in batches:
        hessian.update(quantized, reference=full)
    x = torch.cat([each[0].double().flatten(0, 1) for each in batches])
    own = torch.cat([each[1].double().flatten(0, 1) for each in batches])
    torch.testing.assert_close(hessian.take_drift(), (x - own).T @ own * (2 / 6))
    assert hessian.take_drift() is None
    torch.testing.assert_close(hessian.take(), own.T @ own * (2 / 6))
