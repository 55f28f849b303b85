"""Codes step by step: the solver's own though they drifted, a weaker one's, or another text's."""

import pytest
import torch

from quant.audit.grids import with_codes
from quant.audit.layer import audit_layer
from quant.audit.loops import followed, greedy
from quant.audit.moments import moments
from quant.audit.verdict import AS_GOOD, OTHER_DATA, WORSE_THAN_SOLVER, judge
from quant.hessian import Factor, factorize
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer
from tests.quant.audit.synthetic import stepped

INPUTS, TOKENS = 192, 800  # more than the columns that a block of a loop has
DRAW = torch.Generator().manual_seed(3)
POWER = torch.linspace(0, -3, 48).exp()[:, None]
MIXING, APART = (torch.randn(48, INPUTS, generator=DRAW) * POWER for _ in range(2))
SIZES = torch.exp(0.5 * torch.randn(INPUTS, generator=DRAW))


def sample(seed: int, mixing: torch.Tensor) -> torch.Tensor:
    """A Hessian of so many tokens of a text; another seed takes others of them."""
    draw = torch.Generator().manual_seed(seed)
    text = torch.randn(TOKENS, 48, generator=draw) @ mixing
    text = (text + 0.1 * torch.randn(TOKENS, INPUTS, generator=draw)) * SIZES
    text[:, 5] = 0
    return text.T @ text


HESSIAN, OTHER = sample(1, MIXING), sample(2, MIXING)
OTHER_TEXT = sample(2, 0.9 * MIXING + 0.19**0.5 * APART)
WEIGHT = torch.randn(128, INPUTS, generator=DRAW)
GRIDS = rtn.solve(WEIGHT, Scheme(3, 64)).weight
ORDERS = [False, True]


def seen(found):
    return audit_layer(WEIGHT, found, moments(HESSIAN, TOKENS), "auto", "layer")[0]


@pytest.mark.parametrize("act_order", ORDERS)
def test_a_solver_follows_itself_and_no_other(act_order):
    options = gptq.Options(damping=0.05, act_order=act_order, static_groups=True)
    layer = Layer(tokens=TOKENS)
    prepared = gptq.prepare(HESSIAN, options, layer)
    found = gptq.solve(WEIGHT, Scheme(3, 64), prepared, options, layer).weight
    factor = factorize(HESSIAN, 0.05, act_order)
    assert followed(WEIGHT, found, factor) > 0.9995
    assert followed(WEIGHT, found, factorize(HESSIAN, 0.05, not act_order)) < 0.95
    assert followed(WEIGHT, found, factorize(OTHER, 0.05, act_order)) < 0.985
    assert followed(WEIGHT, found, factorize(OTHER_TEXT, 0.05, act_order)) < 0.85
    # Column by column in float64, as the coefficients say.
    plain = stepped(WEIGHT, found, factor)
    assert float((plain.codes == found.codes).float().mean()) > 0.995


@pytest.mark.parametrize("act_order", ORDERS)
def test_codes_that_drifted_are_the_solvers_and_those_of_another_sample_are_not(act_order):
    """The share of equal codes cannot part the two: here it is larger for the other sample."""
    factor = factorize(HESSIAN, 0.1, act_order)
    draw = torch.Generator().manual_seed(4)
    drifted = seen(stepped(WEIGHT, GRIDS, factor, ties=0.2, until=16, draw=draw))
    other = seen(stepped(WEIGHT, GRIDS, factorize(OTHER, 0.1, act_order)))
    assert drifted.agreement < other.agreement < 0.95
    assert drifted.followed > 0.99 > 0.987 > other.followed
    assert min(drifted.error, other.error) > 1.05 * other.solver_error
    assert judge(drifted).name == AS_GOOD
    assert "% of the codes are what the solver would choose behind the" in judge(drifted).why
    assert judge(other).name == (OTHER_DATA if act_order else WORSE_THAN_SOLVER)


@pytest.mark.parametrize("act_order", ORDERS)
def test_a_weaker_solver_on_this_text_is_named(act_order):
    inputs = moments(HESSIAN, TOKENS)
    usual = factorize(HESSIAN, 0.01, act_order)
    root = usual.root.clone()
    root[:128, 128:] = 0  # nothing is corrected across blocks
    weaker = {
        "a greedy loop's (GPFQ)": greedy(inputs, usual),
        "the solver's at damping 1": factorize(HESSIAN, 1.0, act_order),
        "in its first 128 columns alone": Factor(root, usual.order, usual.dead, 0.0, 0.01, 0.01),
    }
    for words, factor in weaker.items():
        found = judge(seen(stepped(WEIGHT, GRIDS, factor)))
        assert found.name == WORSE_THAN_SOLVER
        assert words in found.why


@pytest.mark.parametrize("damping", [0.03, 0.2, 0.5])
@pytest.mark.parametrize("act_order", ORDERS)
def test_a_loop_that_is_followed_whole_is_not_called_one_of_the_first_columns(act_order, damping):
    """Errors of fewer columns are smaller, so their share alone is the larger one."""
    found = seen(stepped(WEIGHT, GRIDS, factorize(HESSIAN, damping, act_order)))
    said = f"{found.same_as} {found.any_loop_as} {judge(found).why}"
    assert "columns alone" not in said


def test_the_two_zeros_of_fp4_are_one_value():
    scheme = Scheme(4, 32, levels="mxfp4", grid="even")
    options = gptq.Options(damping=0.05)
    layer = Layer(tokens=TOKENS)
    found = gptq.solve(WEIGHT, scheme, gptq.prepare(HESSIAN, options, layer), options, layer).weight
    codes = found.codes.clone()
    codes[found.dequantize() == 0] = codes[found.dequantize() == 0].min()
    other = with_codes(found, codes)
    assert torch.equal(other.dequantize(), found.dequantize())
    assert not torch.equal(other.codes, found.codes)
    factor = factorize(HESSIAN, 0.05, False)
    assert followed(WEIGHT, other, factor) == followed(WEIGHT, found, factor) > 0.999


@pytest.mark.parametrize("act_order", ORDERS)
def test_another_text_is_other_data(act_order):
    found = judge(seen(stepped(WEIGHT, GRIDS, factorize(OTHER_TEXT, 0.01, act_order))))
    assert found.name == OTHER_DATA
    assert "% of the codes follow this text" in found.why
