"""Half of a Gram matrix on the CPU: every instruction set against X^T X in float64."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cuda_ext.gram import add_drift, add_gram

SHAPES = [(1, 1), (1000, 24), (257, 97), (300, 576), (5, 193)]  # tokens, inputs


def rows_of(tokens, inputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(inputs, generator=generator) * 10
    return torch.randn(tokens, inputs, generator=generator) * sizes


def assert_half(total, before, rows):
    """Every entry at most twice the error of torch.mm, and half an ulp of what was there.

    torch.mm adds in blocks, a loop over all rows in one chain, whose error grows with their root.
    Of n squares whose sums round evenly its deviation is eps sqrt(n) / 6: eps / sqrt(12) for each
    sum, of which number t is t / n of the whole.
    """
    expected = before.double() + rows.double().T @ rows.double()
    size = rows.abs().double().T @ rows.abs().double()
    eps = torch.finfo(torch.float32).eps
    torchs = (before + rows.T @ rows).double() - expected
    allowed = 2 * float((torchs / (size + before.abs())).nan_to_num().abs().max())
    allowed += (2 + len(rows) ** 0.5 / 4) * eps
    off = ((total.double() - expected) / (size + before.abs())).nan_to_num().triu()
    assert float(off.abs().max()) <= allowed


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_at_most_twice_the_error_of_torch(isa, shape):
    rows = rows_of(*shape)
    before = torch.ones(shape[1], shape[1])
    total = before.clone()
    add_gram(total, rows)
    assert_half(total, before, rows)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 300), st.integers(1, 250), st.integers(0, 3))
@example(257, 96, 1)
@example(96, 192, 0)
@example(267, 165, 3)  # seen above twice the error of torch.mm
@example(241, 108, 3)  # seen above an eighth of the root
def test_every_shape_and_stride(isa, tokens, inputs, more):
    wide = rows_of(tokens, inputs + more, tokens)
    rows = wide[:, more:]  # NaN beside the columns would show
    wide[:, :more] = float("nan")
    total = torch.zeros(inputs, inputs)
    add_gram(total, rows)
    assert_half(total, torch.zeros(inputs, inputs), rows)


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_drift_is_the_product_of_differences(isa, shape, upper):
    rows, apart = rows_of(*shape), rows_of(*shape, seed=1)
    wide = torch.cat([rows + apart, torch.full_like(rows, float("nan"))], 1)
    reference = wide[:, : shape[1]]  # rows lie apart
    total = torch.ones(shape[1], shape[1])
    add_drift(total, rows, reference, upper)
    less = (reference - rows).double()
    expected = 1 + less.T @ rows.double()
    allowed = 2e-6 * (1 + less.abs().T @ rows.abs().double())
    off = (total.double() - expected).abs()
    assert bool(((off.triu() if upper else off) <= allowed).all())


def test_the_same_bits_with_any_number_of_threads(isa):
    rows, found = rows_of(400, 500), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            total = torch.zeros(500, 500)
            add_gram(total, rows)
            add_drift(total, rows, 2 * rows, upper=False)
            found.append(total)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], each) for each in found)


def test_nan_and_infinity_reach_their_products_alone(isa):
    rows = rows_of(40, 60)
    rows[3, 50] = float("nan")
    rows[5, 2] = float("inf")
    total = torch.zeros(60, 60)
    add_gram(total, rows)
    expected = rows.T @ rows
    half = torch.ones(60, 60).triu().bool()
    assert torch.equal(total.isfinite()[half], expected.isfinite()[half])


@pytest.mark.parametrize(
    ("total", "rows", "message"),
    [
        (torch.zeros(3, 3), torch.zeros(3), "rows is \\[3\\]; expected \\[tokens, inputs\\]"),
        (torch.zeros(3, 3), torch.zeros(2, 4), "total is \\[3, 3\\]; expected \\[4, 4\\]"),
        (torch.zeros(3, 3), torch.zeros(2, 3).double(), "rows is float64; expected float32"),
        (torch.zeros(3, 6)[:, ::2], torch.zeros(2, 3), "total is not contiguous"),
        (torch.zeros(3, 3), torch.zeros(3, 2).T, "last dimension of rows is not dense"),
        (torch.zeros(3, 3, device="meta"), torch.zeros(2, 3), "total is on meta"),
    ],
)
def test_what_does_not_fit_is_named(total, rows, message):
    with pytest.raises(RuntimeError, match=message):
        add_gram(total, rows)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.zeros(2, 4), "reference is \\[2, 4\\]; expected \\[2, 3\\]"),
        (torch.zeros(2, 3).double(), "reference is float64; expected float32"),
        (torch.zeros(3, 2).T, "last dimension of reference is not dense"),
    ],
)
def test_a_reference_that_does_not_fit_is_named(reference, message):
    with pytest.raises(RuntimeError, match=message):
        add_drift(torch.zeros(3, 3), torch.zeros(2, 3), reference, upper=True)
