"""Order and damping are told from the codes of some rows and of the last columns."""

import pytest
import torch

from quant.audit.layer import audit_layer
from quant.audit.moments import Order, moments
from quant.audit.trials import DAMPING, LAST, OTHERS, Trials
from quant.audit.verdict import AS_GOOD, judge
from quant.hessian import descending, factorize
from quant.scheme import Scheme
from quant.solvers import gptq
from quant.solvers.base import Layer
from quant.weight import QuantizedWeight

INPUTS, TOKENS = 2 * LAST + 64, 2000  # the trials' last columns are a part of all
DRAW = torch.Generator().manual_seed(11)
TEXT = torch.randn(TOKENS, 40, generator=DRAW) @ torch.randn(40, INPUTS, generator=DRAW)
TEXT += 0.3 * torch.randn(TOKENS, INPUTS, generator=DRAW)
TEXT *= torch.exp(0.5 * torch.randn(INPUTS, generator=DRAW))
TEXT[:, [3, INPUTS - 2]] = 0  # dead inputs, one of them among the last
HESSIAN = TEXT.T @ TEXT
WEIGHT = torch.randn(150, INPUTS, generator=DRAW)


def made(damping: float, act_order: bool, bits: int = 3):
    options = gptq.Options(damping=damping, act_order=act_order, static_groups=True)
    layer = Layer(tokens=TOKENS)
    prepared = gptq.prepare(HESSIAN, options, layer)
    return gptq.solve(WEIGHT, Scheme(bits, 64), prepared, options, layer).weight


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("damping", [DAMPING, *OTHERS])
def test_the_damping_and_the_order_of_a_solver_are_named(damping, act_order):
    weight = made(damping, act_order)
    seen, better, _ = audit_layer(WEIGHT, weight, moments(HESSIAN, TOKENS), "auto", "layer")
    assert seen.same_as == f"damping {damping:g}{', act-order' * act_order}"
    assert seen.agreement > 0.999
    assert better.codes.shape == weight.codes.shape
    if damping == DAMPING and act_order:  # the better order here
        assert seen.error == pytest.approx(seen.solver_error, rel=1e-3)


@pytest.mark.parametrize("act_order", [False, True])
def test_the_last_columns_follow_from_the_codes_before_them(act_order):
    """As in the whole loop: equal for the right damping, and for no other."""
    found = made(0.05, act_order)
    trials = Trials(WEIGHT, found, moments(HESSIAN, TOKENS), "auto", "layer")
    fits = dict(trials._fits(Order(act_order)))
    assert fits.keys() == {DAMPING, *OTHERS}
    assert fits.pop(0.05) > 0.999
    assert max(fits.values()) < 0.99


def test_columns_sorted_within_groups_and_groups_by_their_largest():
    values = [5.0, 1.0, 7.0, 7.0, 2.0, 9.0, 9.0, 0.0, 3.0, 4.0]
    groups = [range(first, first + 4) for first in (0, 4)]
    by_value = [sorted(group, key=lambda at: -values[at]) for group in groups]
    expected = [at for group in sorted(by_value, key=lambda each: -values[each[0]]) for at in group]
    assert descending(torch.tensor(values), 4).tolist() == [*expected, 8, 9]
    assert descending(torch.tensor(values)).tolist() == sorted(
        range(10), key=lambda at: -values[at]
    )


@pytest.mark.parametrize("damping", [DAMPING, 0.05])
def test_a_solver_whose_order_keeps_groups_together_is_known(damping):
    """GPTQModel's default: the columns are moved, and solved in natural order as they then are."""
    size, groups = 64, INPUTS // 64
    diagonal = HESSIAN.diagonal().clone()
    diagonal[diagonal == 0] = 1
    order = descending(diagonal, size)
    options = gptq.Options(damping=damping, static_groups=True)
    layer = Layer(tokens=TOKENS)
    prepared = gptq.prepare(HESSIAN[order][:, order], options, layer)
    moved = gptq.solve(WEIGHT[:, order], Scheme(3, size), prepared, options, layer).weight
    back = torch.argsort(order)
    group_back = torch.argsort(order.view(groups, size)[:, 0] // size)
    grid = {name: part[:, group_back] for name, part in moved.grid.items()}
    found = QuantizedWeight(moved.codes[:, back], moved.scheme, None, grid)
    seen, _, _ = audit_layer(WEIGHT, found, moments(HESSIAN, TOKENS), "auto", "layer")
    assert seen.agreement > 0.99
    assert seen.same_as == f"damping {damping:g}, act-order by groups of {size}"
    assert judge(seen).name == AS_GOOD


def test_the_loss_of_half_a_hessian_is_that_of_the_whole():
    apart = WEIGHT.double()
    whole = torch.trace(apart @ HESSIAN.double() @ apart.T)
    assert moments(HESSIAN, TOKENS).loss(WEIGHT) == pytest.approx(float(whole), rel=1e-6)


def test_a_factor_that_keeps_its_panels_solves_the_same():
    factor = factorize(HESSIAN, 0.01, tokens=TOKENS)
    keeping = factor.keeping()
    for _ in range(2):
        upper, back = keeping.panel(LAST, 2 * LAST, torch.float32)
        for one, other in zip(
            (upper, back), factor.panel(LAST, 2 * LAST, torch.float32), strict=True
        ):
            assert torch.equal(one, other)
    assert keeping.panel(LAST, 2 * LAST, torch.float32)[1] is back
    assert factor.kept is None
    root = factor.root.double()
    expected = (
        torch.linalg.inv(root[LAST : 2 * LAST, LAST : 2 * LAST]).T @ root[:LAST, LAST : 2 * LAST].T
    )
    torch.testing.assert_close(back.double(), expected, rtol=1e-3, atol=1e-4)
