"""HQQ's zero-points against a textbook in python floats, and what they do not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.calibrate.self_check import cut, self_check
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import NonFiniteError, QuantizationError
from quant.scheme import Scheme
from quant.solvers import hqq, rtn
from quant.solvers.base import Layer
from tests.oracles import textbook_hqq_solver as textbook
from tests.quant.architectures import tiny_model


def scheme(bits, size=16, dtype="float16"):
    return Scheme(bits, size, levels="hqq", scale_dtype=dtype)


def weights(outputs, inputs, seed=0, sigma=0.1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return (sigma * normal * (0.5 + normal.abs())).to(dtype)


def error(weight, solution):
    return float((weight - solution.weight.dequantize().to(weight.dtype)).norm() / weight.norm())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(
    ("bits", "size", "options"),
    [
        (4, 16, {}),
        (3, 16, {}),
        (2, 20, {"lp_norm": 0.5, "beta": 30.0, "kappa": 1.2}),  # a short last group
        (3, None, {"round_zero": True, "lp_norm": 1.0, "iterations": 7}),
        (4, 12, {"round_zero": False, "iterations": 0}),
        (8, 24, {}),
    ],
)
def test_grids_and_codes_are_the_textbooks(bits, size, options, dtype):
    weight = weights(5, 48, seed=bits)
    found = hqq.solve(weight, scheme(bits, size, dtype), options=hqq.Options(**options)).weight
    first = options.get("round_zero", bits == 4)
    how = {name.replace("lp_norm", "p"): value for name, value in options.items()}
    how.pop("round_zero", None)
    width = size or 48
    for row, numbers in enumerate(weight.tolist()):
        for group in range(-(-48 // width)):
            own = numbers[group * width : (group + 1) * width]
            expected = textbook.solve(own, bits, dtype, round_first=first, **how)
            assert float(found.scale[row, group]) == expected.scale
            assert float(found.zero[row, group]) == expected.zero
            part = found.dequantize()[row, group * width : (group + 1) * width]
            assert part.tolist() == expected.values


def test_the_error_moves_as_it_is_said():
    """Errors of weights fall below those of the range, and most at few bits."""
    weight = weights(64, 256, sigma=0.02)
    gains = []
    for bits in (4, 3, 2):
        plain = error(weight, hqq.solve(weight, scheme(bits), options=hqq.Options(iterations=0)))
        gains.append(error(weight, hqq.solve(weight, scheme(bits))) / plain)
    assert gains[0] < 1
    assert gains[2] < gains[1] < 1
    assert gains[2] < 0.96


def test_without_iterations_it_is_rounding():
    weight = weights(6, 48)
    found = hqq.solve(weight, scheme(3), options=hqq.Options(iterations=0)).weight
    plain = rtn.solve(weight, scheme(3)).weight
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.dequantize(), plain.dequantize())


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4, 8]), st.integers(-12, 6), st.integers(0, 999))
def test_small_weights_are_quantized_as_well_as_large_ones(bits, power, seed):
    """Without the library's floor of 1/20000 under steps: only the unit of beta has to follow."""
    weight = weights(4, 32, seed, sigma=1.0)
    p = hqq.DEFAULT_OPTIONS.lp_norm
    follows = hqq.Options(beta=10.0 * 2.0 ** (power * (p - 2)))
    wide = scheme(bits, 16, "float32")
    plain, scaled = (
        hqq.solve(weight, wide).weight,
        hqq.solve(weight * 2.0**power, wide, options=follows).weight,
    )
    assert torch.equal(plain.zero, scaled.zero)
    assert torch.equal(plain.codes, scaled.codes)


def test_tiny_weights_keep_all_of_their_bits():
    """At sigma 0.0001 the library's 8 bits are worth 4 (findings/hqq_small_weights_...)."""
    for dtype, sigma in (("float16", 1e-3), ("float16", 1e-4), ("bfloat16", 1e-12)):
        small, usual = (
            error(weight, hqq.solve(weight, scheme(4, 64, dtype)))
            for weight in (weights(32, 256, sigma=sigma), weights(32, 256, sigma=0.02))
        )
        assert small == pytest.approx(usual, rel=0.02)
    small, usual = (
        error(weight, hqq.solve(weight, scheme(8, 64, "float32")))
        for weight in (weights(32, 256, sigma=1e-4), weights(32, 256, sigma=0.02))
    )
    assert small == pytest.approx(usual, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from([2, 3, 4]))
def test_groups_do_not_see_each_other(seed, bits):
    weight = weights(6, 48, seed)
    whole = hqq.solve(weight, scheme(bits)).weight
    alone = hqq.solve(weight[2:3, 16:32], scheme(bits)).weight
    assert torch.equal(whole.codes[2:3, 16:32], alone.codes)
    assert torch.equal(whole.zero[2:3, 1:2], alone.zero)


def test_zeros_and_constants_are_exact():
    weight = torch.zeros(3, 16)
    weight[1], weight[2] = 0.25, -0.5
    found = hqq.solve(weight, scheme(3)).weight.dequantize()
    assert torch.equal(found[0], weight[0])
    torch.testing.assert_close(found, weight, rtol=2e-3, atol=0)


def test_a_model_is_solved_without_a_text():
    model = tiny_model("llama")
    name = "model.layers.0.mlp.down_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    config = QuantizationConfig(hqq.SOLVER, scheme(3))
    result = quantize_model(model, [], config)
    assert torch.equal(result.weights[name].codes, hqq.solve(weight, scheme(3)).weight.codes)
    assert {each.method for each in result.layers} == {"hqq"}
    assert {each.scheme for each in result.layers} == {"hqq3g16"}
    # The float64 inside: weights of float32 and the same ones of float64 have one grid.
    wide = hqq.solve(weight.double(), scheme(3)).weight
    assert torch.equal(result.weights[name].zero, wide.zero)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_check_of_a_run_solves_the_same(bits):
    piece = cut(weights(16, 192, seed=bits, dtype=torch.float32), None, scheme(bits, 64))
    options = hqq.Options(kappa=1.05)
    checked = self_check(piece, hqq.SOLVER, options, scheme(bits, 64), Layer())
    assert abs(checked) < 1e-6
    assert piece.weight.shape == (8, 128)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lp_norm": 0.0}, r"lp_norm=0\.0 cannot be; use a number above 0"),
        ({"lp_norm": 1.5}, "lp_norm=1.5"),
        ({"beta": 0.0}, r"beta=0\.0 cannot be; use a finite"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"kappa": 0.9}, r"kappa=0\.9 cannot be; use 1 or more"),
        ({"iterations": -1}, "iterations=-1 cannot be; use 0 or more"),
    ],
)
def test_options_that_cannot_be(given, words):
    with pytest.raises(ValueError, match=words):
        hqq.Options(**given)


def test_what_it_cannot_quantize_is_refused():
    for levels, size, use in (("uniform", 64, "hqq3g64"), ("uniform", None, "hqq3$|hqq3\\.")):
        with pytest.raises(QuantizationError, match=f"uniform levels do not .* use scheme={use}"):
            QuantizationConfig(hqq.SOLVER, Scheme(3, size, levels=levels))
    with pytest.raises(QuantizationError, match="ternary levels do not store"):
        QuantizationConfig(hqq.SOLVER, Scheme(2, levels="ternary"))
    with pytest.raises(NonFiniteError, match="fc1: 1 of 32"):
        hqq.solve(torch.full((1, 32), 1.0).index_fill(1, torch.tensor([3]), torch.nan), scheme(3),
                  layer=Layer("fc1"))  # fmt: skip
    assert hqq.describe(hqq.Options(beta=1.0, round_zero=False)) == [
        "beta 1",
        "not rounded at first",
    ]
