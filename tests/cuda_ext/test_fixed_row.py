"""One row of x by sums of whole numbers: exactness, and activations that are hard to fix.

Every instruction set must pass: what is asked is the error rule, not a path.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracles.packed_layers import BITS, Layer, check_product, random_x

ROWS = 16


def outliers(x: torch.Tensor) -> torch.Tensor:
    x[:, ::97] *= 1000
    return x


def zero_block(x: torch.Tensor) -> torch.Tensor:
    x[:, 128:256] = 0
    return x


HARD = {
    "outliers": outliers,
    "equal": lambda x: torch.linspace(1.1, 1.9, len(x))[:, None].expand_as(x).contiguous(),
    "zero-block": zero_block,
    "far-apart": lambda x: x * torch.logspace(-12, 12, x.shape[1])[None],
    "tiny": lambda x: x * 1e-35,
    "huge": lambda x: x * 1e30,
    "one": lambda x: torch.zeros_like(x).index_fill(1, torch.tensor([77]), 1.2345678),
}


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("bits", BITS)
def test_hard_activations(isa: str, bits: int, hard: str) -> None:
    for inputs, group in ((1024, 128), (800, 32), (4096, None)):
        layer = Layer(bits, inputs, 19, group)
        # Rows one by one, judged together: of a few sums torch may hit the exact ones by luck.
        rows = HARD[hard](random_x(ROWS, inputs))
        alone = [layer.linear(row[None].contiguous()) for row in rows]
        check_product(torch.cat(alone), rows, layer.weight)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(isa: str, bits: int, bad: float) -> None:
    layer, x = Layer(bits, 544, 9, 32), random_x(2, 544)
    x[:, 300] = bad
    alone, together = layer.linear(x[:1].contiguous()), layer.linear(x)[:1]
    assert torch.equal(alone.nan_to_num(7.0, 8.0, 9.0), together.nan_to_num(7.0, 8.0, 9.0))
    assert not bool(alone.isfinite().all())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    bits=st.sampled_from(BITS),
    inputs=st.integers(1, 1200),
    outputs=st.integers(1, 25),
    blocks=st.integers(1, 9) | st.none(),
    ternary=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    scales=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_any_shape(library, bits, inputs, outputs, blocks, ternary, dtype, scales) -> None:
    group = None if blocks is None else 32 * blocks
    ternary = ternary and bits == 2
    layer = Layer(bits, inputs, outputs, group, ternary=ternary, scale_dtype=scales)
    rows = random_x(ROWS, inputs, dtype)  # judged together, as above
    alone = [layer.linear(row[None].contiguous()) for row in rows]
    check_product(torch.cat(alone), rows, layer.weight)
    if not ternary:
        x = torch.zeros(1, inputs)
        x[0, inputs // 2] = 0.5
        assert torch.equal(layer.linear(x), 0.5 * layer.weight.t()[inputs // 2][None])


@pytest.mark.parametrize("bits", BITS)
def test_the_same_bits_for_any_number_of_threads(isa: str, bits: int) -> None:
    layer, x = Layer(bits, 1056, 401, 32), random_x(1, 1056)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(layer.linear(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
