"""GPTQ is LDLQ in its order of columns, and Babai's nearest plane back to front; their bound."""

import numpy as np
import pytest
import torch

from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import gptq
from tests.oracles.textbook_lattice import babai, ldl, ldlq
from tests.quant.solving import solve

SCHEMES = [Scheme(8), Scheme(4), Scheme(3, symmetric=True), Scheme(2), Scheme(3, 8), Scheme(2, 8)]
STATIC = gptq.Options(static_groups=True, block_size=8)  # the grids that both are given


def layer(outputs, inputs, seed):
    """Weight [out, in] and H [in, in] of correlated inputs of unequal size, float64."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixed = random(4 * inputs, inputs) @ (random(inputs, inputs) / inputs**0.5)
    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(mixed * random(inputs).exp())
    return random(outputs, inputs) * 0.1, hessian.matrix()


def solved(weight, hessian, scheme):
    """GPTQ's solution, and per row: steps and bounds of its grid, and its multiples [in]."""
    solution = solve(weight, hessian, scheme, STATIC)
    found, columns = solution.weight, weight.shape[1]
    group = torch.arange(columns) // (scheme.group_size or columns)
    zero = found.zero.long()[:, group]
    grids = found.scale.double()[:, group], -zero, scheme.max_code - zero
    multiples = found.codes.long() - zero
    return (
        solution,
        [tuple(part.numpy() for part in row) for row in zip(*grids, strict=True)],
        multiples,
    )


def damped(hessian):
    mean = float(hessian.diagonal().mean())
    return hessian.numpy() + STATIC.damping * mean * np.eye(len(hessian))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("seed", range(2))
def test_gptq_is_ldlq_and_babai_from_the_last_column_to_the_first(scheme, seed):
    weight, hessian = layer(6, 32, seed)
    _, grids, multiples = solved(weight, hessian, scheme)
    _, turned_grids, turned = solved(weight.flip(1), hessian.flip(0, 1), scheme)
    exact, back = damped(hessian), damped(hessian.flip(0, 1))
    for row, grid, turned_grid in zip(range(6), grids, turned_grids, strict=True):
        forward, backward = weight[row].numpy(), weight[row].flip(0).numpy()
        # In the order of the columns: LDLQ as it is, nearest plane on the basis turned round.
        assert (ldlq(forward, exact, *grid).multiples == multiples[row].numpy()).all()
        assert (
            babai(backward, back, *(part[::-1] for part in grid)).multiples[::-1]
            == multiples[row].numpy()
        ).all()
        # Back to front: nearest plane as it is, LDLQ on columns turned round.
        there = [part[::-1] for part in turned_grid]
        assert (babai(forward, exact, *there).multiples[::-1] == turned[row].numpy()).all()
        assert (ldlq(backward, back, *turned_grid).multiples == turned[row].numpy()).all()


def test_the_two_directions_differ():
    weight, hessian = layer(6, 32, 0)
    _, _, multiples = solved(weight, hessian, Scheme(3))
    _, _, turned = solved(weight.flip(1), hessian.flip(0, 1), Scheme(3))
    assert not torch.equal(multiples, turned.flip(1))


def bound(exact, steps):
    """A quarter of sum_j step_j^2 D_jj: the most that e H e^T can be where nothing clips."""
    return float(steps**2 @ ldl(exact)[1]) / 4


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(6, 8)], ids=lambda scheme: scheme.name)
def test_the_error_is_within_the_bound_where_nothing_clips(scheme):
    shares, roundings = [], []
    for seed in range(4):
        weight, hessian = layer(16, 32, seed)
        # The range of each group is [0, 2] by an input of its own, which no update reaches.
        weight += 1
        weight[:, ::8] = 2
        alone = hessian.diagonal()[::8].clone()
        hessian[::8], hessian[:, ::8] = 0, 0
        hessian.diagonal()[::8] = alone
        solution, grids, multiples = solved(weight, hessian, scheme)
        exact, loss = damped(hessian), 0.0
        diagonal = ldl(exact)[1]
        for row, grid in enumerate(grids):
            values = weight[row].numpy()
            oracle = ldlq(values, exact, *grid)
            error = values - grid[0] * multiples[row].numpy()
            loss += error @ exact @ error / 2
            # What is left of a row is the sum of its roundings, clipped or not.
            assert error @ exact @ error == pytest.approx(oracle.rounding**2 @ diagonal, rel=1e-9)
            if not oracle.clipped:
                shares.append(error @ exact @ error / bound(exact, grid[0]))
                roundings += [oracle.rounding / grid[0]]
        assert solution.loss == pytest.approx(loss, rel=1e-9)
    assert len(shares) > 40
    assert max(shares) <= 1
    # Spread evenly over half a step to either side, so that a third of the bound is usual.
    inner = np.arange(32) % 8 > 0
    assert np.mean(np.square(roundings)[:, inner]) == pytest.approx(1 / 12, rel=0.05)


def test_the_bound_does_not_hold_where_weights_clip():
    weight, hessian = layer(16, 32, 0)
    # A symmetric grid of four levels ends at two thirds of the largest weight.
    _, grids, multiples = solved(1 + weight, hessian, Scheme(2, symmetric=True))
    exact = damped(hessian)
    steps = np.stack([grid[0] for grid in grids])
    errors = 1 + weight.numpy() - steps * multiples.numpy()
    over = [e @ exact @ e > bound(exact, step) for e, step in zip(errors, steps, strict=True)]
    assert any(over)
