"""Grids: ranges, zero-points, rounding, and what float16 scales cannot hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from quant.errors import NonFiniteError, QuantizationError
from quant.grid import check_finite, dequantize, find_grid, quantize
from quant.scheme import Scheme
from tests.oracles.textbook_gptq import code_of, find_levels

UNIFORM = [
    Scheme(bits, symmetric=symmetric, grid=grid, scale_dtype=dtype)
    for bits in (2, 3, 4, 8)
    for symmetric in (False, True)
    for grid in ("minmax", "mse")
    for dtype in ("float16", "float32")
]
TERNARY = Scheme(2, levels="ternary")

weights = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-1000, 1000, width=32),
)
magnitudes = st.sampled_from([1e-9, 1e-7, 1e-5, 1e-3, 1.0])


@settings(max_examples=150, deadline=None)
@given(weights, magnitudes, st.sampled_from([*UNIFORM, TERNARY]))
def test_codes_stay_in_range_and_zero_is_exact(values, magnitude, scheme):
    weight = torch.from_numpy(values * np.float32(magnitude))
    grid = find_grid(weight, scheme)
    codes = quantize(weight, grid, scheme)
    assert codes.dtype == torch.uint8
    assert int(codes.max()) <= scheme.max_code
    zeros = torch.zeros_like(weight)
    assert torch.equal(dequantize(quantize(zeros, grid, scheme), grid, scheme), zeros)
    if scheme.levels != "ternary":
        zero = grid["zero"]
        assert torch.equal(zero, zero.round())
        assert 0 <= int(zero.min()) <= int(zero.max()) <= scheme.max_code
        assert (grid["scale"] > 0).all()
    stored = grid["scale"].to(getattr(torch, scheme.scale_dtype)).float()
    assert torch.equal(stored, grid["scale"]), "a grid must be what the file will hold"


@settings(max_examples=150, deadline=None)
@given(weights, magnitudes, st.sampled_from([s for s in UNIFORM if s.grid == "minmax"]))
def test_min_max_errors_are_at_most_half_a_step(values, magnitude, scheme):
    weight = torch.from_numpy(values * np.float32(magnitude)).double()
    grid = find_grid(weight, scheme)
    error = (dequantize(quantize(weight, grid, scheme), grid, scheme) - weight).abs()
    # Rounding the scale to float16 can move the end of the range inward by max_code * 2^-11 steps.
    lost = scheme.max_code * 2.0 ** (-11 if scheme.scale_dtype == "float16" else -24)
    step = grid["scale"].unsqueeze(1)
    assert (error <= step * (0.5 + lost) * (1 + 1e-9)).all()
    low = (step * (0 - grid["zero"].unsqueeze(1))).expand_as(weight)
    high = (step * (scheme.max_code - grid["zero"].unsqueeze(1))).expand_as(weight)
    inside = (weight >= low) & (weight <= high)
    assert (error <= step / 2 * (1 + 1e-9))[inside].all()


@settings(max_examples=60, deadline=None)
@given(weights, magnitudes, st.sampled_from([s for s in UNIFORM if s.grid == "mse"]))
def test_mse_grids_are_never_worse_than_min_max(values, magnitude, scheme):
    weight = torch.from_numpy(values * np.float32(magnitude)).double()
    plain = Scheme(scheme.bits, symmetric=scheme.symmetric, scale_dtype=scheme.scale_dtype)

    def error(which):
        grid = find_grid(weight, which)
        return (dequantize(quantize(weight, grid, which), grid, which) - weight).square().sum(1)

    assert (error(scheme) <= error(plain) * (1 + 1e-12)).all()


@settings(max_examples=80, deadline=None)
@given(weights, magnitudes, st.sampled_from([*UNIFORM, TERNARY]))
def test_codes_equal_the_oracle(values, magnitude, scheme):
    weight = torch.from_numpy(values).double() * magnitude
    grid = find_grid(weight, scheme)
    codes = quantize(weight, grid, scheme)
    for row, numbers in enumerate(weight.numpy()):
        levels = find_levels(
            numbers,
            scheme.bits,
            scheme.symmetric,
            scheme.levels == "ternary",
            scheme.grid == "mse",
            scheme.scale_dtype,
        )
        assert float(grid["scale"][row]) == levels.scale
        assert codes[row].tolist() == [code_of(w, levels) for w in numbers.tolist()]


def test_by_hand_asymmetric():
    scheme = Scheme(2, scale_dtype="float32")
    grid = find_grid(torch.tensor([[-1.0, 0.4, 2.0], [1.0, 3.0, 6.0], [-3.0, -2.0, -1.0]]), scheme)
    assert grid["scale"].tolist() == [1.0, 2.0, 1.0]  # ranges [-1,2], [0,6], [-3,0]
    assert grid["zero"].tolist() == [1.0, 0.0, 3.0]
    probe = torch.tensor([[0.5, 1.5, -9.0], [1.0, 3.0, 99.0], [-0.5, -1.5, -2.5]])
    # Halves go to the even neighbour, as torch.round does it; far values are clamped.
    assert quantize(probe, grid, scheme).tolist() == [[1, 3, 0], [0, 2, 3], [3, 1, 1]]


def test_by_hand_symmetric():
    grid = find_grid(torch.tensor([[-1.5, 0.3], [0.0, 3.0]]), Scheme(2, symmetric=True))
    assert grid["scale"].tolist() == [1.0, 2.0]
    assert grid["zero"].tolist() == [2.0, 2.0]


def test_by_hand_ternary():
    weight = torch.tensor([[-2.0, -1.0, -1.1, 0.0, 2.0, 2.1, 4.0], [1.0, 1, 1, 2, 0, 0, 0]])
    grid = find_grid(weight, TERNARY)
    assert grid.tensors.keys() == {"scale", "negative_scale"}
    assert grid["scale"].tolist() == [4.0, 2.0]
    assert grid["negative_scale"].tolist() == [2.0, 0.0]
    codes = quantize(weight, grid, TERNARY)
    # Exactly half of a level stays 0: the paper's threshold is strict.
    assert codes.tolist() == [[0, 1, 0, 1, 1, 2, 2], [1, 1, 1, 2, 1, 1, 1]]
    assert dequantize(codes, grid, TERNARY)[0].tolist() == [-2.0, 0, -2.0, 0, 0, 4.0, 4.0]


def test_rows_of_zeros_get_the_range_from_minus_one_to_one():
    grid = find_grid(torch.zeros(1, 4), Scheme(4, scale_dtype="float32"))
    assert float(grid["scale"]) == pytest.approx(2 / 15)
    assert float(grid["zero"]) in (7, 8)  # 7.5 up to the rounding of the scale


def test_zero_points_follow_from_the_rounded_scale():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4000, 16, generator=generator)
    grid = find_grid(weight, Scheme(8))
    expected = (-weight.amin(1).clamp(max=0) / grid["scale"]).round().clamp(0, 255)
    assert torch.equal(grid["zero"], expected)


@pytest.mark.parametrize("span", [6e-5 * 255, 3e-6 * 255, 1.49 * 2**-24 * 255, 1e-9])
def test_subnormal_scales_are_rounded_up_so_that_nothing_is_cut_off(span):
    weight = torch.linspace(0, span, 64).unsqueeze(0)
    scheme = Scheme(8)
    grid = find_grid(weight, scheme)
    needed = span / 255
    assert 0.999 * needed <= float(grid["scale"]) <= needed + 2**-24
    error = (dequantize(quantize(weight, grid, scheme), grid, scheme) - weight).abs().max()
    assert float(error) <= float(grid["scale"]) / 2 * 1.0001


@pytest.mark.parametrize(
    ("dtype", "smallest"), [("float16", 2**-24), ("bfloat16", 2**-126), ("float32", 2**-126)]
)
def test_tiny_rows_keep_a_positive_scale(dtype, smallest):
    weight = torch.tensor([[1e-44, 0.0]])
    grid = find_grid(weight, Scheme(4, scale_dtype=dtype))
    assert float(grid["scale"]) == smallest
    assert float(find_grid(-weight, TERNARY)["scale"]) == 0  # an empty ternary side may be


def test_scales_beyond_float16_are_refused_with_the_way_out():
    weight = torch.tensor([[1.0, 2.0], [0.0, 3e5]])
    with pytest.raises(QuantizationError, match=r"fc1: .*row 1 is 1e\+05.*float16.*bfloat16"):
        find_grid(weight, Scheme(2), "fc1")
    find_grid(weight, Scheme(2, scale_dtype="bfloat16"))
    with pytest.raises(QuantizationError, match="bfloat16"):
        find_grid(weight, TERNARY)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_never_become_a_grid(bad):
    for scheme in (Scheme(4), Scheme(4, symmetric=True), Scheme(4, grid="mse"), TERNARY):
        with pytest.raises(NonFiniteError, match="fc1"):
            find_grid(torch.tensor([[1.0, 2.0], [bad, 1.0]]), scheme, "fc1")
    with pytest.raises(NonFiniteError, match=r"fc1: 1 of 4 weights.*row 1, column 0.*float32"):
        check_finite(torch.tensor([[1.0, 2.0], [bad, 1.0]]), "fc1")


def test_half_precision_weights_are_computed_in_float32():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1)).half()
    grid, expected = find_grid(weight, Scheme(4)), find_grid(weight.float(), Scheme(4))
    assert grid["scale"].dtype == torch.float32
    assert torch.equal(grid["scale"], expected["scale"])
    codes = quantize(weight, grid, Scheme(4))
    assert torch.equal(codes, quantize(weight.float(), grid, Scheme(4)))
    assert dequantize(codes, grid, Scheme(4)).dtype == torch.float32
