"""Grids searched with the Hessian, against brute force in float64, in solvers that have them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.calibrate.self_check import cut, self_check
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import NonFiniteError, QuantizationError
from quant.grid import dequantize, find_grid, find_groups, quantize
from quant.memory.limits import Limits
from quant.memory.plan import plan_quantization
from quant.memory.shapes import model_shape
from quant.rules import Rules
from quant.scheme import Scheme
from quant.solvers import gptaq, gptq, obq, qronos, rtn, rtn_calibrated
from quant.solvers.base import Layer
from quant.solvers.textbook import rounded
from tests.oracles import textbook_gptq as textbook
from tests.oracles.naive_hessians import naive_hessians
from tests.quant.architectures import random_windows, tiny_model
from tests.quant.solvers.test_gptq import OPTIONS, layer
from tests.quant.solving import solve

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(3, grid="hessian"),
        Scheme(2, 8, grid="hessian"),
        Scheme(3, 20, symmetric=True, grid="hessian"),  # a short last group
        Scheme(4, 12, grid="hessian", scale_dtype="float32"),
    )
}


def brute_force(weight, hessian, scheme):
    """The oracle's scales [out, groups] and values [out, in] of rounding on searched grids."""
    size, inputs = scheme.group_size or weight.shape[1], weight.shape[1]
    scales, values = [], np.zeros(weight.shape)
    for begin in range(0, inputs, size):
        part = slice(begin, begin + size)
        found = [
            textbook.find_levels(
                row[part].numpy(), scheme.bits, scheme.symmetric, dtype=scheme.scale_dtype,
                metric=hessian[part, part].numpy(),
            )
            for row in weight
        ]  # fmt: skip
        scales.append([levels.scale for levels in found])
        for at, levels in enumerate(found):
            codes = [textbook.code_of(w, levels) for w in weight[at, part].tolist()]
            values[at, part] = levels.values[codes]
    return torch.tensor(scales).T, torch.from_numpy(values)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_rounding_takes_the_grids_that_brute_force_finds(scheme):
    weight, hessian = layer(6, 48, seed=3, dead=(7, 30))
    kept = weight.clone(), hessian.clone()
    solution = rtn_calibrated.solve(weight, scheme, hessian)
    scales, values = brute_force(weight, hessian, scheme)
    assert torch.equal(solution.weight.scale.double(), scales.double())
    torch.testing.assert_close(solution.weight.dequantize().double(), values, rtol=2e-7, atol=0)
    assert solution.dead_columns == 2
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_gptq_searches_each_group_as_it_is_in_the_loop(scheme, options):
    options = replace(options, block_size=16)
    weight, hessian = layer(5, 48, seed=scheme.bits, dead=(7, 30))
    solution = solve(weight, hessian, scheme, options)
    answer = textbook.solve(
        weight.numpy(), hessian.numpy(), scheme.bits, group_size=scheme.group_size,
        symmetric=scheme.symmetric, dtype=scheme.scale_dtype, damping=options.damping,
        act_order=options.act_order, static_groups=options.static_groups,
        stale_block=16 if options.group_grid == "stale" else None, weighted=True,
    )  # fmt: skip
    assert torch.equal(solution.weight.codes, torch.from_numpy(answer.codes).to(torch.uint8))
    assert torch.equal(solution.weight.scale.double(), torch.from_numpy(answer.scales))
    assert solution.loss == pytest.approx(answer.loss, rel=1e-9)


def test_float32_panels_search_the_same_grids():
    weight, hessian = layer(24, 192, seed=1)
    for scheme in (Scheme(3, 32, grid="hessian"), Scheme(3, grid="hessian")):
        exact = solve(weight, hessian, scheme).weight
        fast = solve(weight.float(), hessian.float(), scheme).weight
        assert float((exact.scale == fast.scale).double().mean()) > 0.98
        assert float((exact.codes == fast.codes).double().mean()) > 0.98


def test_obq_rounds_on_searched_grids():
    weight, hessian = layer(4, 16, seed=2)
    scheme = Scheme(3, 8, grid="hessian")
    found = obq.solve(weight, scheme, obq.prepare(hessian)).weight
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(16)
    assert torch.equal(found.scale.double(), brute_force(weight, damped, scheme)[0].double())


def awq_error(weight, inputs, grid, scheme):
    """The error that AWQ's clip search adds up: of the group's outputs on the sample's tokens."""
    error = dequantize(quantize(weight, grid, scheme), grid, scheme) - weight
    return (inputs @ error.T).square().mean(0)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4]), st.booleans(), st.integers(0, 999), st.floats(1e-3, 1e3))
def test_no_candidate_has_smaller_outputs_errors_on_the_tokens(bits, symmetric, seed, multiple):
    generator = torch.Generator().manual_seed(seed)
    weight, inputs = (
        torch.randn(shape, generator=generator, dtype=torch.float64) ** 3
        for shape in ((7, 24), (40, 24))
    )
    scheme = Scheme(bits, symmetric=symmetric, grid="hessian")
    # AWQ's objective is that of the Hessian of its sample, whatever multiple of it is given.
    grid = find_grid(weight, scheme, hessian=multiple * inputs.T @ inputs)
    found = awq_error(weight, inputs, grid, scheme)
    for share in textbook.SHARES:
        levels = [
            textbook.uniform_levels(*ends(row, share, symmetric), bits, symmetric, "float16")
            for row in weight.tolist()
        ]
        other = type(grid)(
            {name: torch.tensor([float(getattr(each, name)) for each in levels]).double()
             for name in ("scale", "zero")}
        )  # fmt: skip
        assert (found <= awq_error(weight, inputs, other, scheme) * (1 + 1e-9)).all()


def ends(row, share, symmetric):
    low, high = min(0.0, *row), max(0.0, *row)
    if symmetric:
        low, high = -max(high, -low), max(high, -low)
    return low * share, high * share


def test_the_identity_gives_the_grids_of_mse():
    weight, _ = layer(16, 48, seed=4)
    for bits, size in ((2, 8), (3, None), (4, 20)):
        mse = find_groups(weight, Scheme(bits, size, grid="mse"))
        found = find_groups(
            weight, Scheme(bits, size, grid="hessian"), hessian=lambda s: 3 * torch.eye(48)[s, s]
        )
        assert torch.equal(mse["scale"], found["scale"])
        assert torch.equal(mse["zero"], found["zero"])


def test_it_lowers_the_error_of_outputs_where_it_is_asked_to():
    """Of rounding by construction within a group; of the layer, and of GPTQ, as measured here."""
    ratios = {"rtn": [], "gptq": []}
    for seed in range(8):
        weight, hessian = layer(16, 48, seed)
        mse, searched = Scheme(2, 16, grid="mse"), Scheme(2, 16, grid="hessian")

        def error(solution, weight=weight, hessian=hessian):
            difference = weight - solution.weight.dequantize().double()
            return float(((difference @ hessian) * difference).sum())

        rounded = rtn_calibrated.solve(weight, searched, hessian)
        ratios["rtn"].append(error(rounded) / error(rtn.solve(weight, mse)))
        solved = error(solve(weight, hessian, searched)), error(solve(weight, hessian, mse))
        ratios["gptq"].append(solved[0] / solved[1])
    assert np.mean(ratios["rtn"]) < 0.9
    assert np.mean(ratios["gptq"]) < 1


def test_groups_that_no_input_reaches_have_the_min_max_grid():
    weight, hessian = layer(4, 16, dead=range(8))
    found = rtn_calibrated.solve(weight, Scheme(2, 8, grid="hessian"), hessian).weight
    plain = rtn.solve(weight, Scheme(2, 8)).weight
    assert torch.equal(found.scale[:, 0], plain.scale[:, 0])
    assert torch.equal(found.codes[:, :8], plain.codes[:, :8])


def test_a_model_is_solved_with_the_hessian_of_its_inputs():
    model, windows = tiny_model("llama"), random_windows(4)
    names = [name for name, _ in model.named_modules() if name.endswith("0.self_attn.q_proj")]
    weight = model.get_submodule(names[0]).weight.detach().clone()
    hessian = naive_hessians(model, names, windows)[names[0]]
    scheme = Scheme(2, 8, grid="hessian")
    config = QuantizationConfig(rtn_calibrated.SOLVER, scheme, arithmetic="portable")
    result = quantize_model(model, windows, config)
    expected = rtn_calibrated.solve(weight.double(), scheme, hessian).weight
    assert torch.equal(result.weights[names[0]].codes, expected.codes)
    assert not torch.equal(expected.codes, rtn.solve(weight.double(), Scheme(2, 8)).weight.codes)
    assert {each.scheme for each in result.layers} == {"w2g8_hessian"}


def test_the_plan_counts_candidates_and_blocks():
    shape = model_shape(tiny_model("llama"))  # 32, 48 and 96 wide

    def solver(scheme):
        config = QuantizationConfig(gptq.SOLVER, scheme, arithmetic="fast")
        items = plan_quantization(shape, config, 96, 24, Limits()).items
        return {item.name: item.bytes for item in items}["the largest layer in the solver"]

    widest = max(inputs for _, inputs in shape.layers)
    searched = solver(Scheme(3, 8, grid="mse")) - solver(Scheme(3, 8))
    assert searched == 4 * 2**13 * 40 * 5
    weighted = solver(Scheme(3, 8, grid="hessian")) - solver(Scheme(3, 8, grid="mse"))
    assert weighted == 4 * 8 * (8 + widest)
    whole = solver(Scheme(3, grid="hessian")) - solver(Scheme(3, grid="mse"))
    assert whole == 4 * 2 * widest**2


@pytest.mark.parametrize(
    ("solver", "scheme", "rules", "words"),
    [
        (rtn.SOLVER, Scheme(3, 8, grid="hessian"), Rules(), r"RTN does not have; use scheme\.grid"),
        (
            gptq.SOLVER,
            Scheme(3, 8, grid="hessian"),
            Rules(few_tokens="rtn"),
            "few_tokens=rtn rounds .*; use few_tokens=damp",
        ),
        (rtn_calibrated.SOLVER, Scheme(3, 8, grid="mse"), Rules(), "w3g8_mse: .* use method=rtn"),
    ],
)
def test_what_has_no_hessian_is_refused_before_anything_runs(solver, scheme, rules, words):
    with pytest.raises(QuantizationError, match=words) as caught:
        QuantizationConfig(solver, scheme, rules=rules)
    assert ". " not in str(caught.value)


def test_a_solver_that_passes_no_hessian_is_told_so():
    with pytest.raises(
        QuantizationError, match=r"fc1: grid=hessian .* find_groups, or use grid=ms"
    ):
        find_groups(torch.ones(2, 8), Scheme(3, 8, grid="hessian"), "fc1")
    with pytest.raises(ValueError, match="searches grids with a Hessian, but needs_calibration"):
        replace(rtn.SOLVER, searches_with_hessian=True)


def test_a_hessian_that_overflowed_is_refused():
    weight, hessian = layer(4, 16)
    hessian[3, 3] = float("inf")
    with pytest.raises(NonFiniteError, match="the Hessian is not finite"):
        rtn_calibrated.solve(weight, Scheme(3, 8, grid="hessian"), hessian)


@pytest.mark.parametrize("solver", [gptq, gptaq, qronos, rtn_calibrated], ids=lambda s: s.__name__)
@pytest.mark.parametrize("scheme", [Scheme(3, 16, grid="hessian"), Scheme(3, grid="hessian")])
def test_the_check_of_a_run_searches_too(solver, scheme):
    weight, hessian = layer(6, 48, seed=5)
    drift = 0.05 * layer(48, 48, seed=6)[0] @ hessian if solver.SOLVER.needs_reference else None
    modes = [{}] if solver is rtn_calibrated else [{}, {"act_order": True}, {"static_groups": True}]
    for mode in modes:
        options = solver.SOLVER.options(**mode)
        piece = cut(weight, hessian, scheme, drift)
        assert abs(self_check(piece, solver.SOLVER, options, scheme, Layer())) < 1e-6


def test_of_two_levels_as_near_the_check_takes_the_one_that_the_levels_take():
    """A tie costs the weights nothing, but the outputs: the check once called it a wrong solver."""
    weight = torch.tensor([[0.0, 7.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5]])
    found = rtn.solve(weight, Scheme(3)).weight.dequantize()
    assert found.tolist() == [[0, 7, 0, 2, 2, 4, 4, 6]]
    assert torch.equal(rounded(weight.double(), Scheme(3)), found.double())
