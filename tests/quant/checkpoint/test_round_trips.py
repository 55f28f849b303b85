"""Any layer through any format comes back bit for bit, and means what the format's text says."""

import pytest
import textbook_unpack as textbook
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import random_weight, same

from quant.checkpoint.format import GPTQ_V1, GPTQ_V2, describe
from quant.checkpoint.formats import compressed_tensors, gptq
from quant.checkpoint.parse import parse
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight


@st.composite
def weights(draw: st.DrawFn, zero_free: bool = False, scattered: bool = True) -> QuantizedWeight:
    """Any bits, groups, symmetry, act-order and sizes that fill no word evenly."""
    group = draw(st.sampled_from([None, 1, 3, 8, 20]))
    inputs = (group or 1) * draw(st.integers(1, 7))
    scheme = Scheme(
        bits=draw(st.sampled_from([2, 3, 4, 8])),
        group_size=group,
        symmetric=draw(st.booleans()),
        scale_dtype=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
    )
    moved = scattered and group is not None and draw(st.booleans())
    seed = draw(st.integers(0, 2**16))
    weight = random_weight(scheme, draw(st.integers(1, 37)), inputs, scattered=moved, seed=seed)
    if zero_free:
        weight.zero.clamp_(min=1)
    return weight


def canonical(weight: QuantizedWeight) -> QuantizedWeight:
    """A shuffled group_index may be the ordinary one by chance, and is then not stored."""
    index = weight.group_index
    ordered = torch.arange(weight.shape[1]) // (weight.scheme.group_size or weight.shape[1])
    if index is None or not torch.equal(index.long(), ordered):
        return weight
    return QuantizedWeight(weight.codes, weight.scheme, grid=weight.grid)


def product(weight: QuantizedWeight) -> torch.Tensor:
    """float64 values of a weight: products of float32 numbers of 24 and 9 bits are exact there."""
    groups = weight.column_groups()
    return weight.scale.double()[:, groups] * (weight.codes.double() - weight.zero[:, groups])


@settings(max_examples=60, deadline=None)
@given(weights(zero_free=True), st.sampled_from([GPTQ_V1, GPTQ_V2]))
def test_gptq(weight: QuantizedWeight, version: str) -> None:
    config = describe(weight.scheme, ["proj"], weight.group_index is not None, {}, "test", version)
    tensors = gptq.to_tensors(weight, version, "proj")
    values = textbook.gptq(tensors, weight.scheme.bits, 1 if version == GPTQ_V1 else 2)
    assert torch.equal(values, product(weight))
    assert same(gptq.read_gptq(tensors, config), canonical(weight))


@settings(max_examples=60, deadline=None)
@given(weights(scattered=False))
def test_compressed_tensors(weight: QuantizedWeight) -> None:
    config = compressed_tensors.describe(weight.scheme, [], {}, "test")
    tensors = compressed_tensors.to_tensors(weight, "proj")
    promised = compressed_tensors.shapes(weight.scheme, *weight.shape, "proj")
    assert promised == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert torch.equal(textbook.compressed_tensors(tensors, weight.scheme.bits), product(weight))
    assert same(compressed_tensors.from_tensors(tensors, parse(config, "f"), "proj"), weight)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_early_compressed_tensors_with_scattered_groups(bits: int) -> None:
    """weight_g_idx, which the library wrote until it gave up actorder="group"."""
    weight = random_weight(Scheme(bits, group_size=8), 6, 24, scattered=True)
    still = QuantizedWeight(weight.codes, weight.scheme, grid=weight.grid)
    tensors = compressed_tensors.to_tensors(still, "proj")
    tensors["weight_g_idx"] = weight.group_index
    config = compressed_tensors.describe(weight.scheme, [], {}, "test")
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    assert torch.equal(textbook.compressed_tensors(tensors, bits), product(weight))
    assert same(compressed_tensors.from_tensors(tensors, parse(config, "f"), "proj"), weight)
    with pytest.raises(ArtifactError, match=r"act-order has scattered .*: export to gptq-v2"):
        compressed_tensors.to_tensors(weight, "proj")


def test_int8_zero_points() -> None:
    """Stored unpacked by the first versions of compressed-tensors."""
    weight = random_weight(Scheme(4, group_size=8), 6, 24)
    tensors = compressed_tensors.to_tensors(weight, "proj")
    tensors["weight_zero_point"] = (weight.zero.int() - 8).to(torch.int8)
    checkpoint = parse(compressed_tensors.describe(weight.scheme, [], {}, "test"), "f")
    assert same(compressed_tensors.from_tensors(tensors, checkpoint, "proj"), weight)
    tensors["weight_zero_point"][0, 0] = 8
    with pytest.raises(ArtifactError, match="goes from -8 to 8, but 4 bits hold -8 to 7"):
        compressed_tensors.from_tensors(tensors, checkpoint, "proj")


def test_early_packing_of_three_bits() -> None:
    weight = random_weight(Scheme(3, symmetric=True), 6, 64)
    tensors = compressed_tensors.to_tensors(weight, "proj")
    tensors["weight_packed"] = torch.zeros(6, 7, dtype=torch.int32)
    checkpoint = parse(compressed_tensors.describe(weight.scheme, [], {}, "test"), "f")
    with pytest.raises(ArtifactError, match="weight_packed holds ten 3-bit codes a word, as early"):
        compressed_tensors.from_tensors(tensors, checkpoint, "proj")


def test_version_one_cannot_hold_zero_points_of_zero() -> None:
    weight = random_weight(Scheme(4, group_size=8), 6, 24)
    weight.zero.clamp_(min=1)
    weight.zero[2, 1] = 0
    with pytest.raises(ArtifactError, match=r"proj.qzeros: 1 zero-points are 0, .* gptq-v2"):
        gptq.to_tensors(weight, GPTQ_V1, "proj")


def test_ternary_levels_have_no_other_format() -> None:
    weight = random_weight(Scheme(2, group_size=8, levels="ternary"), 6, 24)
    with pytest.raises(ArtifactError, match="version 1 has no ternary levels"):
        gptq.to_tensors(weight, GPTQ_V1, "proj")
    with pytest.raises(ArtifactError, match="compressed-tensors has no ternary levels"):
        compressed_tensors.to_tensors(weight, "proj")
