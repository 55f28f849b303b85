"""Norms, gates and rotary positions on the CPU: every instruction set against float64."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cuda_ext.elementwise import gated, rms_norm, rotated

EPS = torch.finfo(torch.float32).eps
ANY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turn(x, cosine, sine):
    """The textbook's rotation: the halves of the width are the pairs."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cosine[:, None] + turned * sine[:, None]


@ANY
@given(st.integers(1, 70), st.integers(1, 100), st.sampled_from([0.0, 1e-6, 1e-2]))
@example(1, 576, 1e-5)
@example(3, 1, 1e-6)
def test_norm(isa, rows, features, epsilon):
    x, weight = random(rows, features) * 3, random(features, seed=1)
    exact = x.double()
    exact = exact * (exact.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight.double()
    found = rms_norm(x, weight, epsilon)
    assert found.shape == x.shape
    assert bool(((found - exact).abs() <= 4 * EPS * exact.abs()).all())


@ANY
@given(st.integers(1, 5), st.integers(1, 300))
@example(40, 1536)
def test_gate(isa, rows, features):
    gate, up = random(rows, features) * 4, random(rows, features, seed=1)
    exact = functional.silu(gate.double()) * up.double()
    found = gated(gate, up)
    # The exponent is multiplied by log2(e) once: an error that grows with it.
    allowed = (4 + 2 * gate.abs().double()) * EPS * exact.abs()
    assert bool(((found - exact).abs() <= allowed + 1e-37).all())
    wide = torch.cat([found.flatten(), gated(gate.flatten()[1:], up.flatten()[1:])])
    assert torch.equal(wide[1 : found.numel()], wide[found.numel() :]), "no matter where it lies"


def test_gates_of_any_size(isa):
    gate = torch.tensor([0.0, -0.0, 90.0, -90.0, 1e30, -1e30, float("inf"), float("nan")])
    up = torch.full_like(gate, 2.0)
    expected = [0.0, 0.0, 180.0, 0.0, 2e30, 0.0, float("inf"), float("nan")]
    torch.testing.assert_close(gated(gate, up), torch.tensor(expected), equal_nan=True)


@ANY
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 40), st.booleans())
def test_rotation(isa, batch, heads, tokens, half, shared):
    width = 2 * half
    wide = random(batch, tokens, heads, width + 3)  # a slice of one product for several matrices
    spread = torch.full((batch, tokens, heads * width + 5), float("nan"))
    spread[..., 2 : 2 + heads * width] = wide[..., :width].reshape(batch, tokens, -1)
    x = spread[..., 2 : 2 + heads * width].unflatten(-1, (heads, width)).transpose(1, 2)
    angles = [random(1 if shared else batch, tokens, width, seed=seed) for seed in (1, 2)]
    exact = turn(x.double(), *(each.double() for each in angles))
    size = turn(x.double().abs(), *(each.double().abs() for each in angles)).abs()
    size = size + (x.double() * angles[0].double()[:, None]).abs() * 2
    found = rotated(x, *angles)
    assert found.shape == x.shape
    assert found.transpose(1, 2).is_contiguous()
    assert bool(((found - exact).abs() <= 2 * EPS * size + 1e-30).all())


def test_the_same_bits_with_any_number_of_threads(isa):
    x, up = random(100, 1001), random(100, 1001, seed=1)
    query, angles = random(2, 60, 9, 64).transpose(1, 2), random(1, 60, 64)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append((rms_norm(x, up[0], 1e-6), gated(x, up), rotated(query, angles, angles)))
    finally:
        torch.set_num_threads(threads)
    for each in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], each, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(random(2, 4), random(3), 1e-6), "weight is \\[3\\]; expected \\[4\\]"),
        (lambda: rms_norm(random(4, 2).T, random(4), 1e-6), "x is not contiguous"),
        (lambda: rms_norm(random(2, 4), random(4), float("nan")), "epsilon=nan"),
        (lambda: rms_norm(random(2, 4).to("meta"), random(4), 1.0), "x is on meta"),
        (lambda: gated(random(2, 4), random(2, 5)), "up is \\[2, 5\\]; expected \\[2, 4\\]"),
        (lambda: gated(random(2, 4), random(2, 4).double()), "up is float64"),
        (lambda: rotated(random(2, 4), random(1, 4), random(1, 4)), "x is \\[2, 4\\]"),
        (lambda: rotated(random(1, 1, 2, 3), *[random(1, 2, 3)] * 2), "width=3 of a head"),
        (lambda: rotated(random(1, 2, 3, 4), *[random(1, 3, 4)] * 2), "side by side"),
        (lambda: rotated(random(3, 1, 2, 4), *[random(2, 2, 4)] * 2), "for 2 sequences"),
        (lambda: rotated(random(1, 1, 2, 4), random(1, 2, 4), random(1, 2, 2)), "sine is"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
