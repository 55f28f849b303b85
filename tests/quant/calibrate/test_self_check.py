"""A run holds its solver against its textbook oracle, and gives no figures of a wrong one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.calibrate.self_check import ALLOWED, cut, self_check
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.scheme import Scheme
from quant.solvers import gpfq, gptaq, gptq, qronos, random, rtn
from quant.solvers.base import Layer, NoOptions
from tests.oracles import textbook_mismatch
from tests.oracles.textbook_gptq import find_levels
from tests.oracles.textbook_mismatch import damped
from tests.quant.architectures import random_windows, tiny_model
from tests.quant.solvers.test_gptq import OPTIONS, SCHEMES, layer
from tests.quant.solvers.test_gptq import oracle as independent
from tests.quant.solving import solve

LAYER = Layer("blocks.0.q", 200)
TWO_INPUTS = {"gptaq": gptaq, "qronos": qronos, "gpfq": gpfq}


def piece_of(scheme: Scheme, outputs: int = 6, inputs: int = 48, seed: int = 3) -> Tensor:
    weight, hessian = layer(outputs, inputs, seed=seed, dead=(5,))
    return cut(weight, hessian, scheme)


def fake_gptq(weight, scheme, prepared, options, layer):
    """GPTQ by name, rounding in fact: what shipped implementations were found to be."""
    return replace(rtn.solve(weight, scheme, None, NoOptions(), layer), damping=prepared.damping)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_the_textbook_equals_the_independent_oracle(scheme: Scheme, options: gptq.Options) -> None:
    options = replace(options, block_size=16)
    weight, hessian = layer(2, 48, seed=scheme.bits, dead=(7, 30))
    damping = solve(weight, hessian, scheme, options).damping
    values = gptq.SOLVER.oracle(weight, scheme, hessian, damping, options)
    expected = torch.from_numpy(independent(weight, hessian, scheme, options).values)
    torch.testing.assert_close(values, expected, rtol=2e-7, atol=0)


def mismatched(outputs: int = 3, inputs: int = 20) -> tuple[Tensor, ...]:
    """Weight [out, in], inputs [tokens, in] in full precision and behind quantized layers."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    full = draw(60, inputs) @ (draw(inputs, inputs) / inputs**0.5)
    return draw(outputs, inputs), full, full + 0.2 * draw(60, inputs)


@pytest.mark.parametrize("size", [20, 5])
@pytest.mark.parametrize("solver", TWO_INPUTS.values(), ids=TWO_INPUTS)
def test_the_textbooks_with_two_inputs_equal_the_independent_ones(solver, size: int) -> None:
    weight, full, quantized = mismatched()
    hessian, drift = quantized.T @ quantized, (full - quantized).T @ quantized
    scheme = Scheme(3, None if size == 20 else size, scale_dtype="float32")
    options, damping = solver.Options(), 0.4
    values = solver.SOLVER.oracle(weight, scheme, hessian, damping, options, drift)
    both = [damped(each.numpy(), damping) for each in (full, quantized)]

    def find(some: np.ndarray) -> np.ndarray:
        return find_levels(some, 3, dtype="float32").values

    more = (options.alpha,) if solver is gptaq else ()
    textbook = getattr(textbook_mismatch, solver.SOLVER.name)
    expected = [textbook(row.numpy(), *both, find, size, *more) for row in weight]
    np.testing.assert_allclose(values.numpy(), np.array(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("solver", TWO_INPUTS.values(), ids=TWO_INPUTS)
def test_solvers_with_two_inputs_pass(solver, act_order: bool) -> None:
    weight, full, quantized = mismatched(inputs=32)
    quantized[:, 7] = 0  # an input that only the full-precision model has
    quantized[:, 0] *= 3
    drift = (full - quantized).T @ quantized
    piece = cut(weight, quantized.T @ quantized, Scheme(3, 8), drift)
    options = solver.Options(act_order=act_order)
    done = self_check(piece, solver.SOLVER, options, Scheme(3, 8), LAYER)
    assert abs(done) < 1e-9
    one = self_check(replace(piece, drift=None), solver.SOLVER, options, Scheme(3, 8), LAYER)
    assert abs(one) < 1e-9


def test_a_solver_with_two_inputs_is_checked_where_they_differ() -> None:
    config = QuantizationConfig(qronos.SOLVER, Scheme(3, 16, scale_dtype="float32"))
    result = quantize_model(tiny_model("llama"), random_windows(4), config)
    checked = {each.block for each in result.layers if each.oracle_gap is not None}
    assert checked == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["w3", "w3g12", "ternary_g8"])
def test_the_solvers_pass(name: str, dtype: torch.dtype) -> None:
    piece = piece_of(SCHEMES[name])
    piece = replace(piece, weight=piece.weight.to(dtype), hessian=piece.hessian.to(dtype))
    done = self_check(piece, gptq.SOLVER, gptq.Options(), SCHEMES[name], LAYER)
    assert abs(done) < 1e-3
    plain = replace(piece, hessian=None)
    assert abs(self_check(plain, rtn.SOLVER, NoOptions(), SCHEMES[name], LAYER)) < 1e-6


def test_rounding_under_the_name_of_gptq_is_refused() -> None:
    scheme = Scheme(3, 12)
    wrong = replace(gptq.SOLVER, solve=fake_gptq)
    with pytest.raises(QuantizationError) as caught:
        self_check(piece_of(scheme), wrong, gptq.Options(), scheme, LAYER)
    said = str(caught.value)
    assert said.startswith("a piece of blocks.0.q: solver gptq leaves the error ")
    assert "runtime.kernel=reference" in said


def test_no_model_comes_out_of_a_wrong_solver() -> None:
    wrong = replace(gptq.SOLVER, solve=fake_gptq)
    config = QuantizationConfig(wrong, Scheme(2, 16, scale_dtype="float32"))
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(QuantizationError, match="under its name"):
        quantize_model(model, random_windows(4), config)
    # It is found out before the first layer is replaced.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_checks_every_group_of_its_first_block() -> None:
    model = tiny_model("llama")
    config = QuantizationConfig(gptq.SOLVER, Scheme(3, 16, scale_dtype="float32"))
    result = quantize_model(model, random_windows(4), config)
    checked = [each for each in result.layers if each.oracle_gap is not None]
    assert [each.name for each in checked] == [
        f"model.layers.0.{name}"
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    ]
    assert all(abs(each.oracle_gap) <= ALLOWED for each in checked)


def test_a_solver_without_an_oracle_is_not_checked() -> None:
    result = quantize_model(tiny_model("llama"), [], QuantizationConfig(random.SOLVER, Scheme(3)))
    assert {each.oracle_gap for each in result.layers} == {None}


def test_a_singular_piece_is_left_out() -> None:
    scheme = Scheme(4)
    weight, hessian = layer(4, 48, tokens=20)  # 20 tokens leave most directions without data
    options = gptq.Options(damping=0.0)
    assert self_check(cut(weight, hessian, scheme), gptq.SOLVER, options, scheme, LAYER) is None


@pytest.mark.parametrize(
    ("scheme", "inputs", "columns"),
    [("w3", 48, 48), ("w3", 4096, 96), ("w3g64", 4096, 128), ("w3g512", 4096, 256)],
)
def test_a_piece_has_two_groups_if_they_are_short(scheme: str, inputs: int, columns: int) -> None:
    piece = cut(torch.randn(20, inputs), torch.eye(inputs), Scheme.parse(scheme))
    assert piece.weight.shape == (8, columns)
    assert piece.hessian.shape == (columns, columns)


def test_a_gap_is_a_share_of_the_oracle() -> None:
    scheme = Scheme(2, 16)
    weight, hessian = layer(6, 48, seed=5)
    done = self_check(cut(weight, hessian, scheme), gptq.SOLVER, gptq.Options(), scheme, LAYER)
    assert done == pytest.approx(0, abs=1e-9)  # float64 on both sides
