"""Weights as factors: SVD, whitened SVD, dense times sparse, against what is best by definition."""

import math

import numpy as np
import pytest
import torch

from quant.budget import Budget
from quant.calibrate.self_check import Piece, self_check
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import NonFiniteError, QuantizationError, SchemeError
from quant.forms import dense_sparse as form
from quant.forms import low_rank
from quant.forms.dense_sparse import most_inner, sparse_of
from quant.rules import Rules
from quant.scheme import Scheme
from quant.solvers import dense_sparse, gptq, rtn, svd, svd_whitened
from quant.solvers.base import Layer
from quant.solvers.textbook import damped
from quant.transforms import equalize
from tests.oracles import textbook_factors as textbook
from tests.quant.architectures import random_windows, tiny_model
from tests.quant.layers_with_inputs import layer_of

SHAPES = [(24, 40), (40, 24), (32, 32)]
ROUNDED = 1e-3  # of an error, by float16 factors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [3.0, 6.5])
def test_svd_leaves_the_least_error_of_its_rank(shape, bits):
    weight, _ = layer_of(*shape)
    budget = Budget(bits)
    found = svd.solve(weight.float(), budget).weight
    rank = found.tensors["left"].shape[1]
    assert found.bits == 16 * rank * sum(shape) <= bits * math.prod(shape)
    assert found.bits + 16 * sum(shape) > bits * math.prod(shape) - 8, "the largest rank"
    left = float((weight - found.dequantize().double()).square().sum())
    assert left == pytest.approx(textbook.tail(weight.numpy(), rank), rel=ROUNDED)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [3.0, 6.5])
def test_whitened_svd_leaves_the_least_error_of_the_outputs(shape, bits):
    weight, hessian = layer_of(*shape)
    factor = svd_whitened.prepare(hessian)
    found = svd_whitened.solve(weight, Budget(bits), factor)
    metric = damped(hessian, found.damping).numpy()
    rank = found.weight.tensors["left"].shape[1]
    left = textbook.error((weight - found.weight.dequantize().double()).numpy(), metric)
    least = textbook.tail(weight.numpy(), rank, metric)
    assert left == pytest.approx(least, rel=ROUNDED)
    assert found.loss == pytest.approx(left / 2)
    assert found.damping == pytest.approx(0.01 * float(hessian.diagonal().mean()))
    plain = svd.solve(weight, Budget(bits)).weight.dequantize().double()
    assert left < textbook.error((weight - plain).numpy(), metric)
    for seed in range(3):  # no other search gets below
        _, other = textbook.alternating(weight.numpy(), metric, rank, sweeps=30, seed=seed)
        assert other > least * (1 - 1e-9)


@pytest.mark.parametrize(
    ("pattern", "shape"), [("2:4", (24, 40)), ("1:4", (40, 24)), ("3:8", (32, 32))]
)
def test_dense_times_sparse_keeps_its_pattern_and_never_gets_worse(pattern, shape):
    weight, hessian = layer_of(*shape)
    options = dense_sparse.Options(pattern, sweeps=1)
    factor = dense_sparse.prepare(hessian, options)
    inner = dense_sparse.inner_of(options, Budget(6.5), shape)
    fit = dense_sparse.Fit(weight, factor.root, inner, *options.sizes)
    used, group = options.sizes
    fit.sweep()  # makes the zeros
    errors = [fit.error()]
    for _ in range(5):
        for row in range(inner):
            fit._solve_row(row)
            errors.append(fit.error())
        fit.solve_dense()
        errors.append(fit.error())
        counts = (fit.sparse != 0).view(inner, -1, group).sum(2)
        assert (counts == used).all()
        assert torch.equal(fit.sparse != 0, fit.mask)
        torch.testing.assert_close(fit.rest, weight - fit.dense @ fit.sparse)
    falls = np.diff(errors)
    assert (falls <= 1e-12 * errors[0]).all()
    assert errors[-1] < 0.98 * errors[0]
    metric = (factor.root @ factor.root.T).numpy()
    assert errors[-1] == pytest.approx(
        textbook.error((weight - fit.dense @ fit.sparse).numpy(), metric)
    )


def test_a_row_and_the_dense_factor_are_least_squares():
    weight, hessian = layer_of(20, 24)
    factor = dense_sparse.prepare(hessian)
    fit = dense_sparse.Fit(weight, factor.root, 5, 2, 4)
    fit.sweep()
    metric = (factor.root @ factor.root.T).numpy()
    fit._solve_row(3)
    column, others = fit.dense[:, 3], [0, 1, 2, 4]
    rest = weight - fit.dense[:, others] @ fit.sparse[others]
    target = (column @ rest / (column @ column)).numpy()
    places = fit.mask[3].nonzero()[:, 0].tolist()
    best_row = textbook.row_on(target, places, metric)
    np.testing.assert_allclose(fit.sparse[3].numpy(), best_row, atol=1e-8)
    fit.solve_dense()
    root, sparse = textbook.root_of(metric), fit.sparse.numpy()
    best = np.linalg.lstsq((sparse @ root).T, (weight.numpy() @ root).T, rcond=None)[0].T
    np.testing.assert_allclose(fit.dense.numpy(), best, atol=1e-7)


def test_dense_times_sparse_is_between_what_bounds_it():
    """A dense S of as many rows is at least as good; a low rank of as many bytes was worse here."""
    weight, hessian = layer_of(48, 64)
    budget, options = Budget(6.5), dense_sparse.Options()
    found = dense_sparse.solve(weight, budget, dense_sparse.prepare(hessian), options)
    metric = damped(hessian, found.damping).numpy()
    inner = found.weight.tensors["dense"].shape[1]
    assert inner == most_inner((48, 64), 2, 4, budget.most_bytes(48, 64))
    assert 2 * found.loss > textbook.tail(weight.numpy(), inner, metric)
    assert found.weight.bits <= 6.5 * weight.numel()
    once = dense_sparse.Options(sweeps=1)
    first = dense_sparse.solve(weight, budget, dense_sparse.prepare(hessian), once)
    assert found.loss < first.loss


SOLVERS = [svd.SOLVER, svd_whitened.SOLVER, dense_sparse.SOLVER]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_holds_each_against_its_oracle(solver, dtype, monkeypatch):
    weight, hessian = layer_of(64, 64, seed=1, dtype=dtype)
    piece = Piece(weight, hessian if solver.needs_calibration else None)
    gap = self_check(piece, solver, solver.options(), Budget(5), Layer())
    assert abs(gap) < 1e-3
    small = Piece(weight[:4, :4], None if piece.hessian is None else hessian[:4, :4])
    assert self_check(small, solver, solver.options(), Budget(5), Layer()) is None, "no rank 1"
    # Not the first singular vectors, but as many coordinates.
    monkeypatch.setattr(
        svd, "directions", lambda w, n: torch.eye(len(w), dtype=w.dtype)[:, :n].contiguous()
    )
    with pytest.raises(QuantizationError, match="textbook has it leaves"):
        self_check(piece, solver, solver.options(), Budget(5), Layer())


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_results_do_not_depend_on_signs_of_the_decomposition(solver, monkeypatch):
    weight, hessian = layer_of(24, 32)
    prepared = None if solver.prepare is None else solver.prepare(hessian)
    before = solver.solve(weight, Budget(5), prepared).weight
    plain = torch.linalg.svd

    def turned(matrix, full_matrices=True):
        found = plain(matrix, full_matrices=full_matrices)
        signs = torch.where(torch.arange(len(found.S)) % 2 == 0, -1.0, 1.0).to(matrix)
        return type(found)((found.U * signs, found.S, signs[:, None] * found.Vh))

    monkeypatch.setattr(torch.linalg, "svd", turned)
    after = solver.solve(weight, Budget(5), prepared).weight
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_dead_inputs_and_weights_of_zeros(solver):
    weight, hessian = layer_of(24, 32)
    hessian[5] = hessian[:, 5] = 0
    weight[:, 5] = 7
    prepared = None if solver.prepare is None else solver.prepare(hessian)
    found = solver.solve(weight, Budget(5), prepared)
    assert found.dead_columns == (0 if prepared is None else 1)
    if prepared is not None:
        assert float(found.weight.dequantize()[:, 5].abs().max()) < 1e-6
    nothing = solver.solve(torch.zeros(24, 32), Budget(5), prepared).weight
    assert torch.equal(nothing.dequantize(), torch.zeros(24, 32))
    weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="1 of 768 weights are NaN"):
        solver.solve(weight, Budget(5), prepared)


def test_sizes_that_no_budget_holds_are_refused():
    shape = (24, 40)
    said = svd.refuses_shape(None, Budget(1), shape)
    assert said == (
        "a layer of 24 outputs and 40 inputs may take 120 bytes, and rank 1 takes 128; use "
        "scheme.budget=1.08 or more"
    )
    assert svd.refuses_shape(None, Budget(1.08), shape) is None
    options = dense_sparse.Options()
    said = dense_sparse.refuses_shape(options, Budget(0.7), shape)
    assert said is not None
    assert "an inner size of 1 takes 97; use scheme.budget=0.82 or more" in said
    assert dense_sparse.refuses_shape(options, Budget(0.82), shape) is None
    said = dense_sparse.refuses_shape(options, Budget(4), (24, 42))
    assert said is not None
    assert "42 inputs, which groups of 4 do not divide" in said
    config = QuantizationConfig(svd.SOLVER, Budget(0.5))
    model = tiny_model("llama")
    kept = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(SchemeError, match=r"layers.0.self_attn.q_proj: solver svd cannot be asked"):
        quantize_model(model, [], config)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, kept)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "4:4"}, "pattern='4:4' is not N:M with N below M"),
        ({"pattern": "2:5"}, "one of 4, 8, 16"),
        ({"pattern": "two"}, "pattern='two'"),
        ({"sweeps": 0}, "sweeps=0 fits nothing"),
        ({"damping": -1}, "damping=-1 is not a share"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        dense_sparse.Options(**options)


def test_tables_say_the_options_that_differ():
    assert dense_sparse.describe(dense_sparse.Options()) == []
    others = dense_sparse.Options("1:4", 3, 0.1)
    assert dense_sparse.describe(others) == ["1:4", "3 sweeps", "damp 0.1"]


def test_what_does_not_go_together_is_refused():
    for solver in (gptq.SOLVER, rtn.SOLVER):
        with pytest.raises(QuantizationError, match="a budget has no levels"):
            QuantizationConfig(solver, Budget(4))
    with pytest.raises(QuantizationError, match="stores no codes on a grid"):
        QuantizationConfig(svd.SOLVER, Scheme(4))
    with pytest.raises(QuantizationError, match=r"equalize makes weights easier .* no grid"):
        QuantizationConfig(svd_whitened.SOLVER, Budget(4), transforms=((equalize.TRANSFORM, None),))
    with pytest.raises(QuantizationError, match="rounds experts to a grid"):
        QuantizationConfig(svd_whitened.SOLVER, Budget(4), rules=Rules(few_tokens="rtn"))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_portable_arithmetic_gives_the_same_factors_with_any_batches(solver):
    found = []
    for batch in (24, 96):
        options = dense_sparse.Options(sweeps=2) if solver is dense_sparse.SOLVER else None
        config = QuantizationConfig(
            solver, Budget(6), options, arithmetic="portable", batch_tokens=batch, kernel="cpu"
        )
        model = tiny_model("llama")
        found.append(dict(quantize_model(model, random_windows(4), config).weights))
    for name, one in found[0].items():
        for part, tensor in one.tensors.items():
            assert torch.equal(tensor, found[1][name].tensors[part]), (name, part)


def test_the_sizes_are_what_the_tensors_take():
    assert low_rank.most_rank((24, 40), 128) == 1
    assert low_rank.most_rank((24, 40), 127) == 0
    for used, group in ((2, 4), (1, 8), (5, 16)):
        for inner in (1, 3, 7):
            weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
            mask = torch.zeros(inner, 48 // group, group, dtype=torch.bool)
            mask[:, :, :used] = True
            held = form.pack(weight[:, :inner], weight[:inner], mask.flatten(1), used, group)
            taken = sum(8 * tensor.nbytes for tensor in held.values())
            assert taken == form.stored_bits((24, 48), inner, used, group)
            assert form.most_inner((24, 48), used, group, -(-taken // 8)) == inner
            assert form.most_inner((24, 48), used, group, taken // 8 - 1) == inner - 1
            expected = (weight[:inner] * mask.flatten(1)).half().float()
            assert torch.equal(sparse_of(held, torch.float32), expected)
