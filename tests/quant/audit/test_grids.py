"""Codes on stored grids: rounding and GPTQ as the solvers make them; clipping."""

import pytest
import torch

from quant.audit.grids import clipped, levels_used, rounded, rows_of, solved, stored_grids
from quant.hessian import factorize
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer

DRAW = torch.Generator().manual_seed(3)
WEIGHT = torch.randn(12, 48, generator=DRAW)
TEXT = torch.randn(200, 48, generator=DRAW) @ torch.randn(48, 48, generator=DRAW)
HESSIAN = TEXT.T @ TEXT
SCHEMES = [
    Scheme(4, 16),
    Scheme(3),
    Scheme(2, 20),  # the last group is short
    Scheme(4, 16, symmetric=True),
    Scheme(2, 16, levels="ternary"),
    Scheme(4, 16, levels="nvfp4"),
    Scheme(4, 32, levels="mxfp4", grid="even"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_rounding_on_stored_grids_equals_the_solver_that_found_them(scheme):
    made = rtn.solve(WEIGHT, scheme).weight
    found = rounded(WEIGHT, made)
    # A stored scale is rounded, and the solver rounds on the stored one: the codes are the same.
    assert torch.equal(found.codes, made.codes)
    assert len(stored_grids(made)) == scheme.groups(48)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_gptq_on_stored_grids_equals_gptq_with_static_groups(scheme, act_order):
    options = gptq.Options(act_order=act_order, static_groups=True, damping=0.02)
    prepared = gptq.prepare(HESSIAN, options, Layer(tokens=200))
    made = gptq.solve(WEIGHT, scheme, prepared, options, Layer(tokens=200)).weight
    factor = factorize(HESSIAN, 0.02, act_order, tokens=200)
    for kernel in ("auto", "reference"):
        found = solved(WEIGHT, made, factor, kernel)
        assert (found.codes == made.codes).float().mean() > 0.995  # the order of sums may differ


def test_gptq_on_stored_grids_follows_scattered_groups():
    options = gptq.Options(act_order=True)
    layer = Layer(tokens=200)
    made = gptq.solve(WEIGHT, Scheme(4, 16), gptq.prepare(HESSIAN, options, layer), options, layer)
    assert made.weight.group_index is not None
    found = solved(WEIGHT, made.weight, factorize(HESSIAN, 0.01, True, tokens=200), "auto")
    assert (found.codes == made.weight.codes).float().mean() > 0.995
    assert torch.equal(
        rows_of(made.weight, slice(2, 5)).dequantize(), made.weight.dequantize()[2:5]
    )


def test_clipping_is_counted_half_a_step_beyond_the_ends():
    scheme = Scheme(2)
    base = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    made = rtn.solve(base, scheme).weight  # levels 0, 1, 2, 3
    assert clipped(base, made) == 0
    moved = torch.tensor([[-0.4, -0.6, 3.4, 3.6]])
    assert clipped(moved, made) == pytest.approx(0.5)
    assert levels_used(made) == 4
