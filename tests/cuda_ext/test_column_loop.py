"""GPTQ's inner column loop: the operator against the plain PyTorch loop, and what it refuses.

The yardstick is the loop on the CPU, for CUDA too: csrc/shared/column_loop.h fixes every rounding,
so all devices give the same bits. (torch's own addcmul_ on CUDA rounds the product before it adds.)
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_ext import ops
from cuda_ext.column_loop import gptq_column_loop
from quant.scheme import Scheme
from quant.solvers.columns import plain_columns
from tests.oracles.column_blocks import FUSED, SCHEMES, block

pytestmark = pytest.mark.skipif(
    ops.why_unavailable(torch.device("cpu")) is not None, reason="no compiler: no kernels"
)


def fused(weight, upper, grids, index, scheme):
    return gptq_column_loop(
        weight,
        upper,
        grids["scale"],
        grids.tensors.get("zero"),
        negative=grids.tensors.get("negative_scale"),
        group=None
        if len(grids["scale"]) == 1
        else torch.tensor(index, dtype=torch.int32, device=weight.device),
        count=len(index),
        max_code=scheme.max_code,
    )


def assert_same(weight, upper, grids, index, scheme, device="cpu"):
    """Equal bits of codes, errors and weights; weight, upper and grids are on the CPU."""
    expected = weight.clone()
    run = plain_columns if FUSED else fused
    codes, errors = run(expected, upper, grids, index, scheme)
    found = weight.clone().to(device)
    made_codes, made_errors = fused(
        found, upper.to(device), grids.apply(lambda part: part.to(device)), index, scheme
    )
    assert made_codes.dtype == torch.uint8
    assert made_codes.device == made_errors.device == found.device
    assert torch.equal(made_codes.cpu(), codes)
    assert torch.equal(made_errors.cpu(), errors)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_it_is_the_plain_loop_bit_for_bit(device, scheme):
    for columns, rows, count in ((128, 200, 128), (7, 65, 5), (1, 1, 1), (33, 16, 32), (17, 64, 0)):
        weight, upper, grids = block(columns, rows, 1, scheme)
        assert_same(weight, upper, grids, [0] * count, scheme, device)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_columns_of_several_groups(device, scheme):
    weight, upper, grids = block(50, 130, 4, scheme)
    assert_same(weight, upper, grids, [3, 0, 2] * 15, scheme, device)


@pytest.mark.skipif(FUSED, reason="addcmul_ is a fused product here: bits are compared")
def test_it_is_close_to_a_loop_that_rounds_twice():
    weight, upper, grids = block(33, 200)
    codes, _ = plain_columns(weight.clone(), upper, grids, [0] * 33, SCHEMES[0])
    made, _ = fused(weight.clone(), upper, grids, [0] * 33, SCHEMES[0])
    assert (made == codes).float().mean() > 0.99


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 140),
    st.integers(1, 4),
    st.sampled_from(SCHEMES),
    st.data(),
)
def test_every_shape_group_and_count(columns, rows, groups, scheme, data):
    count = data.draw(st.integers(0, columns))
    index = data.draw(st.lists(st.integers(0, groups - 1), min_size=count, max_size=count))
    weight, upper, grids = block(columns, rows, groups, scheme, seed=columns * rows)
    assert_same(weight, upper, grids, index, scheme)


def test_a_strided_factor_and_many_repeats(device):
    weight, upper, grids = block(40, 130, device=device)
    wide = torch.full((40, 100), float("nan"), device=device)
    wide[:, 11:51] = upper
    first = weight.clone()
    codes, errors = fused(first, upper, grids, [0] * 40, SCHEMES[0])
    for _ in range(300):
        again = weight.clone()
        found = fused(again, wide[:, 11:51], grids, [0] * 40, SCHEMES[0])
        assert torch.equal(found[0], codes)
        assert torch.equal(found[1], errors)
        assert torch.equal(again, first)
    assert not torch.equal(first, weight)


def test_the_last_column_and_those_left_out(device):
    """Values lie on the grid, and columns beyond `count` are exactly w - sum of updates."""
    scheme = Scheme(4)
    weight, upper, grids = block(10, 3, 1, scheme, device=device)
    kept = weight.clone()
    codes, errors = fused(weight, upper, grids, [0] * 6, scheme)
    values = (codes.float() - grids["zero"]) * grids["scale"]
    assert torch.equal(weight[:6], values)
    expected = kept[6:].double() - upper[:6, 6:].double().T @ errors.double()
    torch.testing.assert_close(weight[6:].double(), expected, rtol=1e-5, atol=1e-5)


def test_non_finite_weights_give_non_finite_errors(device):
    for scheme in (Scheme(4), Scheme(2, 8, levels="ternary")):
        for bad in (float("nan"), float("inf")):
            weight, upper, grids = block(8, 20, 1, scheme, device=device)
            weight[3, 4] = bad
            codes, errors = fused(weight, upper, grids, [0] * 8, scheme)
            assert not torch.isfinite(errors.square().sum())
            assert int(codes.max()) <= scheme.max_code


def test_fake_tensors_and_opcheck(device):
    weight, upper, grids = block(8, 20, device=device)
    arguments = (weight, upper, grids["scale"], grids["zero"], None, None, 8, 3)
    torch.library.opcheck(
        torch.ops.bitsweep.gptq_column_loop,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


def call(device, **changes):
    weight, upper, grids = block(8, 20, 2)
    arguments = {
        "weight": weight,
        "upper": upper,
        "scale": grids["scale"],
        "zero": grids["zero"],
        "negative": None,
        "group": torch.zeros(8, dtype=torch.int32),
        "count": 8,
        "max_code": 3,
        **changes,
    }
    return gptq_column_loop(
        **{
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
    )


WRONG = [
    ({"weight": torch.zeros(8, 20).double()}, "weight is float64; expected float32"),
    ({"weight": torch.zeros(20, 8).T}, "weight is not contiguous"),
    ({"weight": torch.zeros(8)}, r"weight is \[8\]; expected \[columns, rows\]"),
    ({"upper": torch.eye(7)}, r"upper is \[7, 7\]; expected \[8, 8\]"),
    ({"upper": torch.ones(8, 8).triu().T}, "rows of upper are not contiguous"),
    ({"scale": torch.ones(2, 19)}, r"scale is \[2, 19\]; expected \[2, 20\]"),
    ({"scale": torch.ones(20)}, r"scale is \[20\]; expected \[groups, rows\]"),
    ({"zero": None}, "neither of zero .* given"),
    ({"negative": torch.ones(2, 20)}, "both of zero .* given"),
    ({"group": None}, "scale holds 2 groups; pass group"),
    ({"group": torch.zeros(8)}, "group is float32; expected int32"),
    ({"count": 9}, "count=9 of 8"),
    ({"max_code": 256}, "max_code=256"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[case[1][:24] for case in WRONG])
def test_wrong_arguments_are_named(device, changes, message):
    with pytest.raises(RuntimeError, match=f"gptq_column_loop: .*{message}"):
        call(device, **changes)
    call(device)


def test_a_group_that_scale_does_not_hold():
    """On the CPU; CUDA would have to wait for the device to know."""
    for group in (2, -1):
        index = torch.full((8,), group, dtype=torch.int32)
        with pytest.raises(RuntimeError, match=rf"group\[0\]={group}, but scale holds 2 groups"):
            call("cpu", group=index)
