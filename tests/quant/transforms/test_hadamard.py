"""Hadamard: the change is the dense rotation, and layers are solved in its coordinates."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import quant
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.hadamard import hadamard_matrix, unpack_signs
from quant.input_operator import operator_of
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer
from quant.transforms import hadamard
from quant.transforms.base import Group
from quant.transforms.hadamard import Options, Rotation
from tests.oracles.naive_hessians import naive_hessians
from tests.quant.architectures import CONFIGS, random_windows, tiny_model, uneven_model
from tests.quant.calibrate.test_transform import logits, transform

W8G16 = Scheme(8, group_size=16, scale_dtype="float32")


def group(width: int, *layers: str) -> Group:
    layers = layers or ("model.layers.0.mlp.down_proj",)
    return Group(layers[0], layers, (), torch.eye(width), Scheme(4))


def dense(rotation: Rotation, width: int) -> Tensor:
    """The matrix T: blocks diag(s) H / sqrt(b) along its diagonal, in float64."""
    blocks = len(rotation.signs)
    size = width // blocks
    matrix = hadamard_matrix(size).double() / size**0.5
    signs = unpack_signs(rotation.signs, size).double()
    return torch.block_diag(*(each[:, None] * matrix for each in signs))


@pytest.mark.parametrize(("width", "block"), [(48, None), (64, 16), (36, 12), (576, None)])
def test_a_change_is_the_dense_rotation(width: int, block: int | None) -> None:
    found = hadamard.change(group(width), Options(block_size=block))
    assert found is not None
    matrix = dense(found, width)
    identity = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-13)
    random = torch.Generator().manual_seed(width)
    x, weight = (torch.randn(5, width, dtype=torch.float64, generator=random) for _ in range(2))
    torch.testing.assert_close(found.inputs(x), x @ matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.weight(weight), weight @ matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.inputs(x) @ found.weight(weight).T, x @ weight.T)
    hessian = x.T @ x
    torch.testing.assert_close(found.hessian(hessian), matrix.T @ hessian @ matrix)
    assert found.inputs(x.bfloat16()).dtype == torch.float32, "the operator does the only rounding"
    assert found.signs.nbytes <= hadamard.TRANSFORM.kept_bytes(width)


def test_signs_differ_between_blocks_layers_and_seeds() -> None:
    first = hadamard.change(group(128), Options(block_size=64))
    others = [
        hadamard.change(group(128, "another.down_proj"), Options(block_size=64)),
        hadamard.change(group(128), Options(block_size=64, seed=1)),
    ]
    assert first is not None
    assert not torch.equal(*first.signs)
    for other in others:
        assert other is not None
        assert not torch.equal(other.signs, first.signs)
    again = hadamard.change(group(128), Options(block_size=64))
    assert again is not None
    assert torch.equal(again.signs, first.signs)


def test_layers_are_chosen_with_those_that_share_their_input() -> None:
    options = Options(layers=("k_proj", "down_proj"))
    assert hadamard.change(group(64, "a.q_proj", "a.k_proj"), options) is not None
    assert hadamard.change(group(64, "a.down_proj"), options) is not None
    assert hadamard.change(group(64, "a.o_proj"), options) is None


@pytest.mark.parametrize("size", [0, -8, 4, 10, 92])
def test_blocks_without_a_matrix_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"block_size={size}: no Hadamard matrix of this order"):
        Options(block_size=size)


WITHOUT = (
    "has no Hadamard matrix for 13696 inputs, which are no Paley order times a power of two: use "
    "block_size=128, or name other layers (layers=[...])"
)
UNCUT = (
    "cannot cut 576 inputs into blocks of block_size=128: use a divisor such as 96, null for all "
    "inputs, or name the layers that it fits (layers=[...])"
)


@pytest.mark.parametrize(
    ("options", "widths", "reason"),
    [
        (Options(), [576, 1536], None),
        (Options(), [4096, 13696], WITHOUT),
        (Options(layers=("o_proj",)), [4096, 13696], None),
        (Options(layers=("o_proj",)), [13696], WITHOUT),
        (Options(block_size=128), [576, 1536], UNCUT),
        (Options(block_size=64), [576, 1536], None),
        (Options(block_size=128, layers=("down_proj",)), [576, 1536], None),
    ],
)
def test_widths_without_factors_are_refused(
    options: Options, widths: list[int], reason: str | None
) -> None:
    assert hadamard.TRANSFORM.refuses(options, widths[0], widths) == reason


def test_a_layer_without_a_matrix_is_refused_by_name() -> None:
    message = f"a.down_proj: transform hadamard {WITHOUT}."
    with pytest.raises(QuantizationError, match=f"^{re.escape(message)}$"):
        hadamard.change(
            Group("a.down_proj", ("a.down_proj",), (), torch.zeros(13696, 1), Scheme(4))
        )


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_computes_the_same_before_quantization(
    name: str, dtype: torch.dtype, allowed: float
) -> None:
    model = (tiny_model(name) if dtype == torch.float32 else uneven_model(name)).to(dtype)
    tokens = torch.stack(random_windows(2, seed=5))
    before, weights = logits(model, tokens), copy.deepcopy(model.state_dict())
    found = transform(model, ((hadamard.TRANSFORM, Options()),))
    assert all("hadamard kept in front of" in each.notes[0] for each in found.values())
    moved = [n for n in weights if not torch.equal(model.state_dict()[n], weights[n])]
    assert moved == [n for n in weights if n.removesuffix(".weight") in found]
    after = logits(model, tokens)
    assert (after - before).abs().max() <= allowed * before.abs().max()


def round_to_nearest(weight: Tensor, bits: int, size: int) -> Tensor:
    """Textbook rounding on asymmetric grids of `size` columns, min and max of zero included."""
    result = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            values = weight[row, start : start + size]
            low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
            scale = (high - low) / (2**bits - 1)
            zero = round(-low / scale)
            codes = ((values / scale).round() + zero).clamp(0, 2**bits - 1)
            result[row, start : start + size] = (codes - zero) * scale
    return result


def test_rounding_is_that_of_the_densely_rotated_weight() -> None:
    model = uneven_model("llama")
    original = copy.deepcopy(model)
    config = QuantizationConfig(
        rtn.SOLVER, Scheme(4, 16, scale_dtype="float32"),
        transforms=((hadamard.TRANSFORM, Options()),),
    )  # fmt: skip
    result = quantize_model(model, random_windows(2), config)
    for layer in result.layers:
        linear = model.get_submodule(layer.name)
        rotation = operator_of(linear).changes()[0].change
        weight = original.get_submodule(layer.name).weight.detach().double()
        expected = round_to_nearest(weight @ dense(rotation, weight.shape[1]), 4, 16)
        apart = (linear.weight.double() - expected).abs() > 1e-5
        assert apart.float().mean() < 0.002, "ties aside"
        signs = rotation.signs.nbytes * 8 / linear.weight.numel()
        expected_bits = config.scheme.bits_per_weight(layer.inputs) + signs
        assert layer.bits_per_weight == pytest.approx(expected_bits, rel=1e-12)


@pytest.mark.parametrize("options", [Options(), Options(block_size=16), Options(layers=("fc2",))])
def test_the_solver_sees_the_hessian_of_the_rotated_inputs(options: Options) -> None:
    model, windows = uneven_model("opt"), random_windows(4)
    hessians: dict[str, Tensor] = {}

    def prepare(matrix: Tensor, chosen: gptq.Options, layer: Layer) -> object:
        hessians[layer.name] = matrix.clone()
        return gptq.prepare(matrix, chosen, layer)

    config = QuantizationConfig(
        replace(gptq.SOLVER, prepare=prepare), W8G16, gptq.Options(true_sequential=True),
        ((hadamard.TRANSFORM, options),),
    )  # fmt: skip
    original = copy.deepcopy(model)
    quantize_model(model, windows, config)
    expected = naive_hessians(model, hessians, windows)  # after the operators
    for layer, hessian in hessians.items():
        torch.testing.assert_close(hessian.double(), expected[layer], rtol=2e-3, atol=2e-3)
    # The first layer that is rotated: its inputs are still those of the original model.
    layer = "model.decoder.layers.0.self_attn.q_proj"
    plain = naive_hessians(original, [layer], windows)[layer]
    operator = operator_of(model.get_submodule(layer))
    assert (operator is None) == bool(options.layers)
    if operator is not None:
        matrix = dense(operator.changes()[0].change, len(plain))
        plain = matrix.T @ plain @ matrix
    torch.testing.assert_close(hessians[layer].double(), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_artifact_holds_the_signs(tmp_path: Path, dtype: torch.dtype) -> None:
    model, tokens = uneven_model("llama").to(dtype), torch.stack(random_windows(2, seed=5))
    config = QuantizationConfig(
        gptq.SOLVER, W8G16, transforms=((hadamard.TRANSFORM, Options(block_size=8)),)
    )
    result = quantize_model(model, random_windows(4), config)
    quant.save(tmp_path / "a", model, result.weights, method={"name": "gptq"})
    loaded = quant.load(tmp_path / "a", "reference")
    expected = logits(model, tokens)
    apart = (logits(loaded, tokens) - expected).norm()
    assert apart <= 16 * torch.finfo(dtype).eps * expected.norm()


def test_layers_that_do_not_exist_change_nothing_and_are_refused() -> None:
    config = QuantizationConfig(
        rtn.SOLVER, W8G16, transforms=((hadamard.TRANSFORM, Options(layers=("fc2",))),)
    )
    message = "transform hadamard changed no layer of this model"
    with pytest.raises(QuantizationError, match=message):
        quantize_model(tiny_model("llama"), random_windows(2), config)
