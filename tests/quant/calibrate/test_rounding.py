"""Quantization behind rounded inputs: what the solver is given, and what the artifact computes."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.calibrate.stream import quantize_model
from quant.checkpoint.loader import dequantize_layers
from quant.config import QuantizationConfig
from quant.errors import ArtifactError, QuantizationError
from quant.input_operator import operator_bits, operator_of, rounds_inputs
from quant.scheme import Scheme
from quant.solvers import gptq, qronos, rtn
from quant.transforms import equalize, hadamard, round_inputs, smoothquant
from quant.transforms.base import Transform
from quant.transforms.round_inputs import Options
from tests.oracles.naive_hessians import naive_hessians
from tests.quant import rotating
from tests.quant.architectures import random_windows, uneven_model
from tests.quant.calibrate.test_reference import SolvedDrifts, inputs_of
from tests.quant.calibrate.test_transform import Recorded
from tests.quant.mixtures import tiny_mixture

W4G16 = Scheme(4, group_size=16)
COARSE = Scheme(2, group_size=16)
TOKENS = torch.stack(random_windows(2, seed=5))
A3 = (round_inputs.TRANSFORM, Options(3))
STATIC = (round_inputs.TRANSFORM, Options(4, "tensor", symmetric=False))
SMOOTH = (smoothquant.TRANSFORM, None)
ROTATE = (hadamard.TRANSFORM, hadamard.Options(block_size=8))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize(
    ("name", "rounding", "before"),
    [
        ("opt", A3, ()),
        ("opt", STATIC, (SMOOTH,)),
        ("llama", A3, (SMOOTH,)),
        ("llama", STATIC, (ROTATE,)),
        ("gpt2", A3, (ROTATE,)),
    ],
    ids=["plain", "folded-tensor", "folded", "kept-tensor", "kept"],
)
def test_the_solver_sees_the_hessian_of_rounded_inputs(name: str, rounding, before) -> None:
    """Done in stages and in float64, the finished model feeds each layer what its Hessian was of.

    A layer's hook of the oracle sees what its weight multiplies.
    """
    model, windows, recorded = uneven_model(name).double(), random_windows(3), Recorded()
    config = QuantizationConfig(
        recorded.solver, W4G16, gptq.Options(true_sequential=True), (*before, rounding),
        arithmetic="portable",
    )  # fmt: skip
    result = quantize_model(model, windows, config)
    assert recorded.hessians
    for layer, expected in naive_hessians(model, recorded.hessians, windows).items():
        tight = 1e-5 * float(expected.abs().max())  # the plain passes have angles in float32
        torch.testing.assert_close(recorded.hessians[layer], expected, rtol=0, atol=tight)
    for layer in result.layers:
        assert layer.transforms[-1].startswith("round_inputs kept in front of ")
    # They are not those of the inputs before they were rounded.
    for layer in recorded.hessians:
        operator_of(model.get_submodule(layer))[-1].forward = lambda x: x
    plain = naive_hessians(model, recorded.hessians, windows)
    first = next(iter(plain))
    assert (plain[first] - recorded.hessians[first]).norm() > 0.005 * plain[first].norm()


@pytest.mark.parametrize(
    ("true_sequential", "before"),
    [(False, ()), (True, ((equalize.TRANSFORM, None),)), (True, ((rotating.TRANSFORM, None),))],
    ids=["plain", "folded", "kept"],
)
def test_drifts_are_from_the_full_precision_inputs_in_the_same_coordinates(
    true_sequential: bool, before: tuple[tuple[Transform, object], ...]
) -> None:
    """D = 2/n sum (x T - x~) x~^T: x~ is rounded, x comes of the untouched model."""
    model, windows, solved = uneven_model("llama").double(), random_windows(3), SolvedDrifts()
    original = copy.deepcopy(model)
    config = QuantizationConfig(
        solved.solver, COARSE, qronos.Options(true_sequential=true_sequential), (*before, A3),
        arithmetic="portable",
    )  # fmt: skip
    quantize_model(model, windows, config)
    reference = inputs_of(original, solved.drifts, windows)
    for layer, drift in solved.drifts.items():
        assert drift is not None  # of the first layers, too, whose inputs are rounded
        if not true_sequential and layer != next(iter(solved.drifts)):
            continue  # the finished model is not what the other layers of a block saw
        read = inputs_of(model, [layer], windows)[layer]
        full = reference[layer]
        operator = operator_of(model.get_submodule(layer))
        for kept in list(operator)[:-1]:
            full = kept(full)
        if before and before[0][0] is equalize.TRANSFORM:
            # Folded scales: powers of two between the weights' columns.
            full = full * _folded(original, model, layer)
        expected = (full - read).T @ read * (2 / len(windows))
        tight = 1e-4 * float(solved.hessians[layer].abs().max())  # as where nothing is rounded
        torch.testing.assert_close(drift, expected, rtol=1e-4, atol=tight)


def _folded(original: nn.Module, model: nn.Module, layer: str) -> Tensor | float:
    """The factors that the norm in front of a layer of this Llama took in; 1 for other layers."""
    path, _, name = layer.rpartition(".")
    norm = {"q_proj": "input_layernorm", "gate_proj": "post_attention_layernorm"}.get(name)
    if norm is None:
        return 1.0
    norm = f"{path.rpartition('.')[0]}.{norm}.weight"
    return (model.get_parameter(norm) / original.get_parameter(norm)).detach()


@pytest.mark.parametrize("rounding", [A3, STATIC], ids=["token", "tensor"])
def test_an_artifact_computes_what_was_calibrated_bit_for_bit(rounding, tmp_path: Path) -> None:
    model = uneven_model("llama")
    config = QuantizationConfig(rtn.SOLVER, W4G16, transforms=(ROTATE, rounding))
    result = quantize_model(model, random_windows(3), config)
    assert rounds_inputs(model)
    quant.save(tmp_path / "a", model, result.weights, method={"name": "rtn"})
    loaded = quant.load(tmp_path / "a", "reference", dtype=torch.float32)
    assert rounds_inputs(loaded)
    assert "round_inputs, a" in repr(loaded)
    assert operator_bits(loaded) == operator_bits(model)
    quant.save(tmp_path / "b", loaded, quant.load_weights(tmp_path / "a"), method={"name": "rtn"})
    again = quant.load(tmp_path / "b", "reference", dtype=torch.float32)
    assert torch.equal(logits(again), logits(loaded))
    dequantize_layers(loaded, torch.float32)
    assert torch.equal(logits(loaded), logits(model))
    said = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    change = said["operators"]["model.layers.0.mlp.down_proj"][1]
    assert change["options"] == {
        "bits": rounding[1].bits, "per": rounding[1].per, "symmetric": rounding[1].symmetric,
        "clip": 1.0,
    }  # fmt: skip
    assert "options" not in said["operators"]["model.layers.0.mlp.down_proj"][0]


@pytest.mark.parametrize(
    "options", [None, {"bits": 40}, {"bits": 4, "of": 1}, "all", {"bits": "4"}]
)
def test_options_that_were_damaged_are_refused_by_name(options: object, tmp_path: Path) -> None:
    model = uneven_model("llama")
    config = QuantizationConfig(rtn.SOLVER, W4G16, transforms=(A3,))
    result = quantize_model(model, random_windows(2), config)
    quant.save(tmp_path, model, result.weights, method={"name": "rtn"})
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for said in config["quantization_config"]["operators"].values():
        said[0]["options"] = options
    file.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"round_inputs rounds inputs, and its options="):
        quant.load(tmp_path, verify_files=False)


def test_bits_per_weight_count_the_static_scales_alone() -> None:
    found = []
    for transforms in ((), (A3,), (STATIC,)):
        config = QuantizationConfig(rtn.SOLVER, W4G16, transforms=transforms)
        layer = quantize_model(uneven_model("llama"), random_windows(2), config).layers[0]
        found.append(layer.bits_per_weight * layer.outputs * layer.inputs)
    assert found[0] == found[1] == found[2] - 32 - 8


def test_experts_without_tokens_are_rounded_too_but_not_to_a_range_that_nothing_shows() -> None:
    model, windows = tiny_mixture("mixtral"), [TOKENS[0, :2]]
    for rounding in (A3, STATIC):
        config = QuantizationConfig(rtn.SOLVER, W4G16, transforms=(rounding,))
        if rounding is STATIC:
            with pytest.raises(QuantizationError, match="no calibration token reached"):
                quantize_model(tiny_mixture("mixtral"), windows, config)
            continue
        result = quantize_model(model, windows, config)
        assert min(layer.tokens for layer in result.layers) == 0
        assert all("round_inputs kept" in layer.transforms[0] for layer in result.layers)


def test_changes_before_a_rounding_are_still_held_to_be_exact() -> None:
    """The check sees the block before its inputs are rounded."""
    wrong = Transform(
        "wrong", "wrong", lambda *_: _Doubled(), rebuild=lambda _: _Doubled(),
        keep=lambda _: "always",
    )  # fmt: skip
    config = QuantizationConfig(rtn.SOLVER, W4G16, transforms=((wrong, None), A3))
    with pytest.raises(QuantizationError, match="its output moved by"):
        quantize_model(uneven_model("llama"), random_windows(2), config)


class _Doubled:
    """A change that forgets the weight."""

    def inputs(self, x: Tensor) -> Tensor:
        return 2 * x

    def weight(self, weight: Tensor) -> Tensor:
        return weight

    def hessian(self, matrix: Tensor) -> Tensor:
        return 4 * matrix

    def tensors(self) -> dict[str, Tensor]:
        return {}


def test_a_rounding_stands_last_and_is_kept() -> None:
    for transforms in ((A3, SMOOTH), (A3, A3)):
        with pytest.raises(QuantizationError, match="list round_inputs last"):
            QuantizationConfig(rtn.SOLVER, W4G16, transforms=transforms)
    loose = Transform("loose", "loose", rounding=round_inputs.rounding)
    with pytest.raises(QuantizationError, match="no module can take a rounding in"):
        QuantizationConfig(rtn.SOLVER, W4G16, transforms=((loose, None),))
    with pytest.raises(ValueError, match="has both change and rounding"):
        Transform("both", "both", lambda *_: None, rounding=round_inputs.rounding)
