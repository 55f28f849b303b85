"""OBQ against the textbook oracle, against GPTQ, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quant.calibrate.self_check import cut, self_check
from quant.errors import NonFiniteError, QuantizationError, SingularHessianError
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import gptq, obq
from quant.solvers.base import Layer
from tests.oracles.textbook_gptq import find_levels
from tests.oracles.textbook_obq import greedy


def layer(outputs=5, inputs=12, seed=0):
    """Weight and Hessian, float64, of correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    sizes = torch.rand(inputs, generator=generator, dtype=torch.float64) * 3
    x = torch.randn(4 * inputs, inputs, generator=generator, dtype=torch.float64) @ mixed * sizes
    hessian = Hessian(inputs, dtype=torch.float64)
    hessian.update(x)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return weight, hessian.matrix()


@pytest.mark.parametrize("steps", [1, 5, 32])
@pytest.mark.parametrize("outliers_first", [True, False])
@pytest.mark.parametrize("scheme", [Scheme(2), Scheme(3), Scheme(2, 4), Scheme(2, 5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_textbook(
    scheme: Scheme, outliers_first: bool, seed: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obq, "STEPS", steps)
    weight, hessian = layer(seed=seed)
    options = obq.Options(outliers_first=outliers_first)
    solution = obq.solve(weight, scheme, obq.prepare(hessian, options), options)
    damped = hessian.numpy() + 0.01 * float(hessian.diagonal().mean()) * np.eye(len(hessian))
    size, loss = scheme.group_size or weight.shape[1], 0.0
    for row, found in zip(weight.numpy(), solution.weight.dequantize(), strict=True):
        starts = range(0, len(row), size)
        each = [find_levels(row[start : start + size], scheme.bits).values for start in starts]
        values, part = greedy(
            row, damped, np.array([each[j // size] for j in range(len(row))]), outliers_first
        )
        np.testing.assert_allclose(found.double().numpy(), values, rtol=1e-6)
        loss += part
    assert solution.loss == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize("outliers_first", [True, False])
@pytest.mark.parametrize("scheme", [Scheme(2), Scheme(3, 5)])
def test_the_oracle_of_runs_is_the_textbook(scheme: Scheme, outliers_first: bool) -> None:
    weight, hessian = layer(seed=3)
    options = obq.Options(outliers_first=outliers_first)
    damping = 0.01 * float(hessian.diagonal().mean())
    values = obq.SOLVER.oracle(weight, scheme, hessian, damping, options)
    damped = hessian.numpy() + damping * np.eye(len(hessian))
    size = scheme.group_size or weight.shape[1]
    for row, found in zip(weight.numpy(), values, strict=True):
        starts = range(0, len(row), size)
        each = [find_levels(row[start : start + size], scheme.bits).values for start in starts]
        levels = np.array([each[j // size] for j in range(len(row))])
        expected, _ = greedy(row, damped, levels, outliers_first)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_run_would_see_another_order() -> None:
    weight, hessian = (each.float() for each in layer(outputs=8, inputs=48, seed=5))
    piece = cut(weight, hessian, Scheme(3))
    options, where = obq.Options(), Layer("fc1", 200)
    assert abs(self_check(piece, obq.SOLVER, options, Scheme(3), where)) < 1e-3

    def in_natural_order(weight, scheme, prepared, options, layer):
        return gptq.solve(weight, scheme, prepared, gptq.Options(), layer)

    other = replace(obq.SOLVER, solve=in_natural_order)
    with pytest.raises(QuantizationError, match=r"fc1: solver obq leaves the error"):
        self_check(piece, other, options, Scheme(3), where)


def test_batches_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = layer(outputs=21)
    prepared = obq.prepare(hessian)
    whole = obq.solve(weight, Scheme(3), prepared)
    monkeypatch.setattr(obq, "BATCH", 1)
    assert torch.equal(obq.solve(weight, Scheme(3), prepared).weight.codes, whole.weight.codes)


def test_a_transposed_weight_has_the_codes_of_its_copy() -> None:
    weight, hessian = layer(outputs=8)
    prepared = obq.prepare(hessian)
    whole = obq.solve(weight, Scheme(3), prepared)
    turned = obq.solve(weight.T.contiguous().T, Scheme(3), prepared)
    assert torch.equal(turned.weight.codes, whole.weight.codes)


def test_a_weight_inside_unequal_levels_is_no_outlier() -> None:
    # Levels -1, 0 and 4: 1.5 is farther from 0 than half of the step to -1, but between levels, so
    # it waits for its turn: 0.3 costs less.
    weight = torch.tensor([[-1.0, 4.0, 1.5, 0.3]], dtype=torch.float64)
    hessian = torch.tensor(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -0.7], [0, 0, -0.7, 1]], dtype=torch.float64
    )
    options = obq.Options(damping=0)
    first, turn = (
        obq.solve(weight, Scheme(2, levels="ternary"), obq.prepare(hessian, options), each)
        for each in (options, obq.Options(0, outliers_first=False))
    )
    assert first.weight.codes.tolist() == turn.weight.codes.tolist() == [[0, 2, 1, 1]]
    assert first.loss == pytest.approx(turn.loss)


def test_it_loses_less_than_columns_in_order() -> None:
    weight, hessian = layer(outputs=64, inputs=32)
    weight, hessian = weight.float(), hessian.float()
    ours = obq.solve(weight, Scheme(3), obq.prepare(hessian))
    fixed = gptq.solve(weight, Scheme(3), gptq.prepare(hessian))
    assert ours.loss is not None
    assert fixed.loss is not None
    assert ours.loss < fixed.loss


def test_bad_input_names_the_layer_and_what_to_do() -> None:
    weight, hessian = layer()
    prepared = obq.prepare(hessian)
    with pytest.raises(ValueError, match="fc1: the Hessian is for 12 inputs, the weight has 11"):
        obq.solve(weight[:, 1:], Scheme(4), prepared, layer=Layer("fc1"))
    with pytest.raises(ValueError, match=r"fc1: the factor was made with damping=0.01.*prepare"):
        obq.solve(weight, Scheme(4), prepared, obq.Options(0.1), Layer("fc1"))
    ordered = gptq.prepare(hessian, gptq.Options(act_order=True))
    with pytest.raises(ValueError, match=r"fc1: .*act_order=True.*prepare"):
        obq.solve(weight, Scheme(4), ordered, layer=Layer("fc1"))
    huge, scheme = weight.float() * 1e30, Scheme(2, scale_dtype="float32")
    with pytest.raises(NonFiniteError, match=r"fc1: the loss of OBQ is (inf|nan).*raise damping"):
        obq.solve(huge, scheme, obq.prepare(hessian.float()), layer=Layer("fc1"))


def test_dead_inputs_become_zero_and_a_singular_hessian_is_refused() -> None:
    weight, hessian = layer()
    hessian[3], hessian[:, 3] = 0, 0
    solution = obq.solve(weight, Scheme(4), obq.prepare(hessian))
    assert solution.dead_columns == 1
    assert not solution.weight.dequantize()[:, 3].any()
    with pytest.raises(SingularHessianError, match=r"^q: "):
        obq.prepare(torch.ones(4, 4), obq.Options(damping=0), Layer("q"))
    with pytest.raises(ValueError, match="damping=-1"):
        obq.Options(damping=-1)
    assert obq.describe(obq.Options()) == []
    assert obq.describe(obq.Options(0.1, False)) == ["damp 0.1", "outliers in turn"]
