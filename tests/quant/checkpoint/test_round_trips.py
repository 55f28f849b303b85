"""Any layer through any format comes back bit for bit, and means what the format's text says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quant.checkpoint import read_layer
from quant.checkpoint.choose import artifact_format, written_format
from quant.errors import ArtifactError
from quant.scheme import BITS, Scheme
from quant.weight import QuantizedWeight
from tests.oracles import textbook_unpack as textbook
from tests.oracles.random_weights import random_weight, same
from tests.quant.stored_layers import described, stored_layer, write

CT = "compressed-tensors"
TERNARY = Scheme(2, group_size=8, levels="ternary")


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


def unscattered(weight: QuantizedWeight) -> QuantizedWeight:
    return QuantizedWeight(weight.codes, weight.scheme, grid=weight.grid)


def canonical(weight: QuantizedWeight) -> QuantizedWeight:
    """A shuffled group_index may be the ordinary one by chance, and is then not stored."""
    index = weight.group_index
    ordered = torch.arange(weight.shape[1]) // (weight.scheme.group_size or weight.shape[1])
    if index is None or not torch.equal(index.long(), ordered):
        return weight
    return unscattered(weight)


def product(weight: QuantizedWeight) -> torch.Tensor:
    """float64 values of a weight: products of float32 numbers of 24 and 9 bits are exact there."""
    groups = weight.column_groups()
    return weight.scale.double()[:, groups] * (weight.codes.double() - weight.zero[:, groups])


def promised(format: str, weight: QuantizedWeight) -> dict[str, object]:
    return dict(written_format(format)[1].entries(weight.scheme, stored_layer(weight)))


def kinds(tensors: dict[str, Tensor]) -> dict[str, object]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@settings(max_examples=60, deadline=None)
@given(weights(zero_free=True), st.sampled_from(["gptq-v1", "gptq-v2"]))
def test_gptq(weight: QuantizedWeight, format: str) -> None:
    tensors = write(format, weight)
    assert promised(format, weight) == kinds(tensors)
    values = textbook.gptq(tensors, weight.scheme.bits, 1 if format == "gptq-v1" else 2)
    assert torch.equal(values, product(weight))
    assert same(read_layer(tensors, described(format, weight)), canonical(weight))


@settings(max_examples=60, deadline=None)
@given(weights(scattered=False))
def test_compressed_tensors(weight: QuantizedWeight) -> None:
    tensors = write(CT, weight)
    assert promised(CT, weight) == kinds(tensors)
    assert torch.equal(textbook.compressed_tensors(tensors, weight.scheme.bits), product(weight))
    assert same(read_layer(tensors, described(CT, weight)), weight)


@pytest.mark.parametrize("scattered", [False, True])
def test_ternary(scattered: bool) -> None:
    weight = random_weight(TERNARY, 6, 24, scattered=scattered)
    tensors = write("bitsweep-ternary", weight)
    assert promised("bitsweep-ternary", weight) == kinds(tensors)
    assert same(read_layer(tensors, described("bitsweep-ternary", weight)), weight)


def short_group(scheme: Scheme) -> QuantizedWeight:
    """20 inputs in groups of 8: the last one has 4."""
    weight = random_weight(scheme, 6, 20)
    weight.zero.clamp_(min=1)
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("format", ["gptq-v1", "gptq-v2"])
def test_gptq_holds_a_last_group_that_is_shorter(format: str, bits: int) -> None:
    weight = short_group(Scheme(bits, group_size=8))
    tensors = write(format, weight)
    assert promised(format, weight) == kinds(tensors)
    assert torch.equal(
        textbook.gptq(tensors, bits, 1 if format == "gptq-v1" else 2), product(weight)
    )
    assert same(read_layer(tensors, described(format, weight)), weight)
    notes = written_format(format)[1].notes(weight.scheme, [stored_layer(weight)])
    assert (
        "1 layers end in a group of fewer than 8 columns (such as proj with 20 inputs)" in notes[0]
    )
    assert "vLLM" in notes[0]


def test_compressed_tensors_refuses_a_last_group_that_is_shorter() -> None:
    with pytest.raises(ArtifactError, match=r"groups of 8 do not divide its 20 inputs, .*gptq-v2"):
        write(CT, short_group(Scheme(4, group_size=8)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_early_compressed_tensors_with_scattered_groups(bits: int) -> None:
    """weight_g_idx, which the library wrote until it gave up actorder="group"."""
    weight = random_weight(Scheme(bits, group_size=8), 6, 24, scattered=True)
    still = unscattered(weight)
    tensors = write(CT, still)
    tensors["weight_g_idx"] = weight.group_index
    config = described(CT, still)
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    assert torch.equal(textbook.compressed_tensors(tensors, bits), product(weight))
    assert same(read_layer(tensors, config), weight)
    with pytest.raises(ArtifactError, match=r"act-order has scattered, .*: export to gptq-v2"):
        write(CT, weight)


def test_int8_zero_points() -> None:
    """Stored unpacked by the first versions of compressed-tensors."""
    weight = random_weight(Scheme(4, group_size=8), 6, 24)
    tensors = write(CT, weight)
    tensors["weight_zero_point"] = (weight.zero.int() - 8).to(torch.int8)
    config = described(CT, weight)
    assert same(read_layer(tensors, config), weight)
    tensors["weight_zero_point"][0, 0] = 8
    with pytest.raises(ArtifactError, match="goes from -8 to 8, but 4 bits hold -8 to 7"):
        read_layer(tensors, config)


def test_version_one_cannot_hold_zero_points_of_zero() -> None:
    weight = random_weight(Scheme(4, group_size=8), 6, 24)
    weight.zero.clamp_(min=1)
    weight.zero[2, 1] = 0
    with pytest.raises(ArtifactError, match=r"proj.qzeros: 1 zero-points are 0, .* gptq-v2"):
        write("gptq-v1", weight)


def test_ternary_levels_have_no_other_format() -> None:
    weight = random_weight(TERNARY, 6, 24)
    for format in ("gptq-v1", "gptq-v2", CT):
        with pytest.raises(ArtifactError, match=f"has ternary levels, which {format} cannot store"):
            write(format, weight)
    with pytest.raises(ArtifactError, match="has uniform levels, and bitsweep-ternary stores"):
        write("bitsweep-ternary", random_weight(Scheme(4), 6, 24))


def test_the_format_of_an_artifact_is_the_one_that_holds_the_scheme() -> None:
    assert artifact_format(Scheme(4, group_size=8))[0].name == "gptq-v2"
    assert artifact_format(TERNARY)[0].name == "bitsweep-ternary"


@pytest.mark.parametrize("bits", sorted(set(BITS) - {2, 3, 4, 8}))
def test_bits_that_other_tools_do_not_have(bits: int) -> None:
    """Artifacts hold them, and a note says so; the library of compressed-tensors takes 1 to 8."""
    weight = random_weight(Scheme(bits, group_size=8), 6, 24)
    for format in ("gptq-v2", CT):
        config = described(format, weight)
        assert same(read_layer(write(format, weight), config, shape=(6, 24)), weight)
    notes = written_format("gptq-v2")[1].notes(weight.scheme, [stored_layer(weight)])
    assert notes == [
        f"only Bitsweep reads {bits} bits in this format; other tools read 2, 3, 4, 8."
    ]
    with pytest.raises(
        ArtifactError, match=f"has {bits} bits, which no reader of gptq-v1 supports"
    ):
        write("gptq-v1", weight)
