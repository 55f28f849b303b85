"""Blocks of GGUF against the package's own dequantizer: every value, bit for bit."""

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.checkpoint.gguf.pack import PACKINGS, Packing, check_values, pack, packing_of, packings
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight
from tests.oracles.random_weights import random_weight


def dequantized(weight: QuantizedWeight, packing: Packing) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[packing.name]
    assert gguf.GGML_QUANT_SIZES[kind] == (packing.block, packing.size)
    return torch.from_numpy(gguf.quants.dequantize(pack(weight, packing).numpy(), kind))


def exact(weight: QuantizedWeight) -> QuantizedWeight:
    """The weight with scales of few digits, so that minima are exact in float16."""
    weight.scale.copy_((weight.scale * 1024).round().clamp(1, 60) / 1024)
    return weight


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PACKINGS), st.integers(0, 9), st.integers(1, 3), st.integers(1, 4),
       st.booleans())  # fmt: skip
def test_values_are_those_of_the_scheme(
    packing: Packing, seed: int, outputs: int, blocks: int, by_row: bool
) -> None:
    size = None if by_row else packing.block * (1 + seed % 2)
    scheme = Scheme(packing.bits, size, symmetric=packing.symmetric)
    weight = random_weight(scheme, outputs, blocks * packing.block, seed=seed)
    if packing.minimum:
        weight = exact(weight)
    check_values(weight, packing, "layer")
    assert torch.equal(dequantized(weight, packing), weight.dequantize())


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda each: each.name)
def test_all_codes_zero_points_and_signs(packing: Packing) -> None:
    """Every code with every zero-point, and reversed grids."""
    levels = 2**packing.bits
    zeros = [levels // 2] if packing.symmetric else range(levels)
    for sign in (1, -1):
        for zero in zeros:
            codes = torch.arange(packing.block).remainder(levels).to(torch.uint8)[None]
            weight = QuantizedWeight(
                codes=codes, scheme=Scheme(packing.bits, None, symmetric=packing.symmetric),
                scale=torch.full((1, 1), sign * 0.125, dtype=torch.float16),
                zero=torch.full((1, 1), zero, dtype=torch.uint8),
            )  # fmt: skip
            expected = sign * 0.125 * (codes.float() - zero)
            assert torch.equal(dequantized(weight, packing), expected)


@pytest.mark.parametrize(
    ("scheme", "inputs", "expected"),
    [
        (Scheme(4, 32, symmetric=True), 96, "Q4_0"),
        (Scheme(4, 64, symmetric=True), 96, "Q4_0"),  # the last group is half as long
        (Scheme(4, None, symmetric=True), 96, "Q4_0"),
        (Scheme(4, 32), 96, "Q4_1"),
        (Scheme(4, None), 96, "Q4_1"),
        (Scheme(4, None), 512, "Q4_K"),
        (Scheme(4, 256), 512, "Q4_K"),
        (Scheme(4, 128), 512, "Q4_1"),
        (Scheme(5, 32, symmetric=True), 64, "Q5_0"),
        (Scheme(5, None), 256, "Q5_K"),
        (Scheme(8, 128, symmetric=True), 128, "Q8_0"),
        (Scheme(2, 256), 256, "Q2_K"),
        (Scheme(2, None, symmetric=True), 256, "Q2_K"),
        (Scheme(3, None, symmetric=True), 256, "Q3_K"),
        (Scheme(6, 256, symmetric=True), 256, "Q6_K"),
        (Scheme(4, 16, symmetric=True), 64, None),
        (Scheme(4, 48, symmetric=True), 96, None),
        (Scheme(4, 32, symmetric=True), 40, None),
        (Scheme(2, 64), 256, None),
        (Scheme(8, 32), 64, None),
        (Scheme(3, None), 256, None),
    ],
)
def test_the_type_of_a_scheme(scheme: Scheme, inputs: int, expected: str | None) -> None:
    found = packing_of(scheme, inputs)
    assert (None if found is None else found.name) == expected


def test_no_smaller_type_holds_a_scheme() -> None:
    for scheme in (Scheme(4, 256), Scheme(5), Scheme(4, 32, symmetric=True)):
        found = packings(scheme)
        assert found[0].bits_per_weight == min(each.bits_per_weight for each in found)


def test_what_is_not_exact_is_refused() -> None:
    q4_1 = next(each for each in PACKINGS if each.name == "Q4_1")
    weight = random_weight(Scheme(4, 32), 4, 64)
    weight.scale.fill_(0.1)
    weight.zero.fill_(3)
    with pytest.raises(ArtifactError, match=r"m.l: 8 of 8 minima .*symmetric=true"):
        check_values(weight, q4_1, "m.l")
    weight.zero.fill_(4)
    check_values(weight, q4_1, "m.l")
    weight = random_weight(Scheme(4, 32, symmetric=True, scale_dtype="float32"), 4, 64)
    with pytest.raises(ArtifactError, match=r"m.l: \d of 8 scales are not exact in float16"):
        check_values(weight, PACKINGS[0], "m.l")
    weight = random_weight(Scheme(4, 32, symmetric=True), 4, 64, scattered=True)
    with pytest.raises(ArtifactError, match=r"scattered.*static_groups=true"):
        check_values(weight, PACKINGS[0], "m.l")
