"""Hessians: the sum, what it refuses, and the factor of its inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import CalibrationError, NonFiniteError, SingularHessianError
from quant.hessian import Hessian, blocked_root, factorize, plain_root


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(size, seed=0):
    inputs = random(3 * size, size, seed=seed) @ random(size, size, seed=seed + 1)
    return inputs.T @ inputs


def test_two_over_n_times_the_sum_of_outer_products():
    batches = [random(2, 5, 4, seed=1), random(3, 5, 4, seed=2), random(7, 4, seed=3)]
    hessian = Hessian(4, "fc1", dtype=torch.float64)
    for batch in batches:
        hessian.update(batch)
    assert (hessian.sequences, hessian.tokens) == (2 + 3 + 1, 10 + 15 + 7)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for batch in batches:
        for token in batch.reshape(-1, 4):
            expected += torch.outer(token, token) * 2 / 6
    torch.testing.assert_close(hessian.matrix(), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 1000))
def test_how_sequences_are_batched_does_not_matter(sizes, seed):
    inputs = random(sum(sizes), 3, 6, seed=seed)
    whole, parts = (Hessian(6, dtype=torch.float64) for _ in range(2))
    whole.update(inputs)
    for part in inputs.split(sizes):
        parts.update(part)
    assert (whole.sequences, whole.tokens) == (parts.sequences, parts.tokens)
    torch.testing.assert_close(whole.matrix(), parts.matrix(), rtol=1e-12, atol=1e-12)


def test_a_single_long_sum_stays_accurate_in_float32():
    inputs = random(400, 16, 8, seed=5, dtype=torch.float32)
    single, double = Hessian(8), Hessian(8, dtype=torch.float64)
    for sequence in inputs:
        single.update(sequence)
        double.update(sequence)
    error = (single.matrix().double() - double.matrix()).abs().max() / double.matrix().abs().max()
    assert single.matrix().dtype == torch.float32
    assert float(error) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_are_multiplied_exactly(dtype):
    inputs = random(50, 8).to(dtype)
    half, full = Hessian(8), Hessian(8)
    half.update(inputs)
    full.update(inputs.float())
    assert torch.equal(half.matrix(), full.matrix())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_are_refused_and_leave_the_sum_alone(bad):
    hessian = Hessian(4, "model.layers.3.fc1")
    hessian.update(random(1, 6, 4).float())
    before = hessian.matrix()
    inputs = random(1, 6, 4).float()
    inputs[0, 2, 1] = bad
    with pytest.raises(
        NonFiniteError, match=r"model\.layers\.3\.fc1: 1 of 24 .*sequence 2, first at token 2.*bfl"
    ):
        hessian.update(inputs)
    assert torch.equal(hessian.matrix(), before)
    assert (hessian.tokens, hessian.sequences) == (6, 1)


def test_wrong_widths_and_empty_sums_are_refused():
    hessian = Hessian(4, "fc1")
    with pytest.raises(ValueError, match=r"fc1.*5 features.*4 inputs"):
        hessian.update(torch.zeros(2, 5))
    with pytest.raises(CalibrationError, match="fc1: no calibration token"):
        hessian.matrix()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.sampled_from([None, 1, 3, 8, 40]))
def test_the_root_is_upper_triangular_and_gives_back_the_matrix(size, seed, block):
    matrix = positive(size, seed) + 0.01 * torch.eye(size, dtype=torch.float64)
    root = plain_root(matrix) if block is None else blocked_root(matrix.clone(), block)
    assert torch.equal(root, root.triu())
    assert (root.diagonal() > 0).all()
    torch.testing.assert_close(root @ root.T, matrix, rtol=1e-9, atol=1e-9)


def test_the_factor_holds_the_inverse_and_its_blocks():
    matrix = positive(24)
    factor = factorize(matrix, blocked=False)
    upper = factor.upper
    assert torch.equal(upper, upper.triu())
    damped = matrix + factor.damping * torch.eye(24)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(factor.inverse(5, 13), upper[5:13, 5:13], rtol=1e-9, atol=1e-12)


def test_conditioning_in_the_order_of_the_authors_code():
    matrix = positive(6)
    matrix[2], matrix[:, 2] = 0, 0
    kept = matrix.clone()
    factor = factorize(matrix, damping=0.05, act_order=True)
    assert torch.equal(matrix, kept), "the caller's Hessian is not touched"
    assert factor.dead.tolist() == [False, False, True, False, False, False]
    diagonal = matrix.diagonal().clone()
    diagonal[2] = 1
    assert factor.damping == pytest.approx(0.05 * float(diagonal.mean()))
    assert factor.order.tolist() == sorted(range(6), key=lambda j: -float(diagonal[j]))
    conditioned = matrix + torch.diag(factor.damping + (diagonal - matrix.diagonal()))
    inverse = torch.linalg.inv(conditioned[factor.order][:, factor.order])
    torch.testing.assert_close(factor.upper.T @ factor.upper, inverse, rtol=1e-8, atol=1e-10)


def test_act_order_keeps_equal_columns_in_natural_order():
    assert factorize(torch.eye(300), act_order=True).order.tolist() == list(range(300))


def test_half_precision_hessians_are_factored_in_float32():
    assert factorize(torch.eye(4, dtype=torch.float16)).upper.dtype == torch.float32
    assert factorize(torch.eye(4, dtype=torch.float64)).upper.dtype == torch.float64


def test_too_few_tokens_is_told_from_dependent_inputs():
    inputs = random(5, 12)
    few = inputs.T @ inputs
    with pytest.raises(
        SingularHessianError, match=r"fc1: .*damping 0 .*5 calibration tokens.*12 live inputs"
    ):
        factorize(few, damping=0, layer="fc1", tokens=5)
    twins = random(50, 12)
    twins[:, 3] = twins[:, 7]
    dependent = twins.T @ twins
    with pytest.raises(
        SingularHessianError, match=r"fc1.*linear combinations.*raise damping"
    ) as error:
        factorize(dependent, damping=0, layer="fc1", tokens=50)
    assert "50 calibration tokens" in str(error.value)
    for matrix in (few, dependent):
        factorize(matrix, damping=0.01, layer="fc1", tokens=5)


def test_indefinite_and_broken_hessians_are_refused():
    with pytest.raises(SingularHessianError, match="q_proj: the Hessian is not positive definite"):
        factorize(torch.diag(torch.tensor([1.0, -1.0, 1.0])), layer="q_proj")
    broken = torch.eye(3)
    broken[0, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"q_proj: 1 of 9 entries.*bfloat16"):
        factorize(broken, layer="q_proj")
    with pytest.raises(ValueError, match=r"q_proj: the Hessian is \[2, 3\]; it must be square"):
        factorize(torch.zeros(2, 3), layer="q_proj")


def test_matrices_are_symmetric_beyond_one_strip():
    inputs = random(64, 300, dtype=torch.float32)
    hessian = Hessian(300)
    hessian.update(inputs)
    matrix = hessian.matrix()
    assert torch.equal(matrix, matrix.T)
    expected = 2 * inputs.double().T @ inputs.double()
    torch.testing.assert_close(matrix.double(), expected, rtol=1e-5, atol=1e-4)


def test_large_finite_activations_are_not_mistaken_for_infinite_ones():
    """Their sum overflows the type, they do not."""
    hessian = Hessian(4, dtype=torch.float32)
    with pytest.raises(NonFiniteError, match="8 of 16"):
        hessian.update(torch.full((4, 4), 1.0).index_fill_(0, torch.tensor([0, 1]), float("inf")))
    hessian.update(torch.full((8, 4), 60000.0, dtype=torch.float16))
    assert hessian.tokens == 8
    check = Hessian(4)
    check._require_finite(torch.full((4, 4), 3e38))
    assert torch.isfinite(hessian.matrix()).all()


def test_a_hessian_that_is_not_symmetric_is_refused():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    hessian = x.T @ x
    factorize(hessian * (1 + 1e-5 * torch.randn(6, 6)))  # rounding
    hessian[1, 4] += 9
    with pytest.raises(
        ValueError, match=r"proj: the Hessian is not symmetric.* at \[1, 4\] and .*\[4, 1\]"
    ):
        factorize(hessian, layer="proj")
    with pytest.raises(ValueError, match="the Hessian is not symmetric"):
        factorize(torch.triu(x.T @ x), layer="proj")


def test_what_a_rotation_rounds_is_not_refused_as_asymmetric():
    """Fewer tokens than inputs: the entries of empty directions are rounding, and do not mirror."""
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    x[:, :4] *= 50
    hessian = x.T @ x
    rotation = torch.linalg.eigh(hessian.double())[1].float()
    rotated = rotation.T @ hessian @ rotation
    scale = rotated.diagonal().abs().sqrt()
    assert ((rotated - rotated.T).abs() > 1e-3 * scale * scale[:, None]).any()
    factor = factorize(rotated)
    damped = rotated + 0.01 * rotated.diagonal().mean() * torch.eye(256)
    assert (factor.root @ factor.root.T - damped).norm() < 1e-5 * damped.norm()


def test_a_hessian_is_taken_once_and_in_its_own_memory():
    rows = torch.randn(2, 40, 200, generator=torch.Generator().manual_seed(3))
    kept, taken = Hessian(200), Hessian(200, layer="fc1")
    for each in (kept, taken):
        each.update(rows)
    place = taken._sum.data_ptr()
    found = taken.take()
    assert torch.equal(found, kept.matrix())
    assert torch.equal(kept.matrix(), kept.matrix()), "the sum is left as it was"
    assert found.data_ptr() == place
    with pytest.raises(RuntimeError, match="fc1: its Hessian was already taken"):
        taken.take()
