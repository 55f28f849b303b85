"""GPTQ's inner column loop: the operator against the plain PyTorch loop, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_blocks import FUSED, SCHEMES, block

from cuda_ext import ops, packed
from cuda_ext.sweep import gptq_sweep
from quant.scheme import Scheme
from quant.solvers.sweep import plain_columns

pytestmark = pytest.mark.skipif(
    ops.why_unavailable(torch.device("cpu")) is not None, reason="no compiler: no kernels"
)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
        ],
    ),
]


def fused(weight, upper, grids, index, scheme):
    return gptq_sweep(
        weight,
        upper,
        grids.scale,
        grids.zero,
        negative=grids.negative_scale,
        group=None
        if len(grids.scale) == 1
        else torch.tensor(index, dtype=torch.int32, device=weight.device),
        count=len(index),
        max_code=scheme.max_code,
    )


def assert_same(weight, upper, grids, index, scheme):
    expected, found = weight.clone(), weight.clone()
    codes, errors = plain_columns(expected, upper, grids, index, scheme)
    made_codes, made_errors = fused(found, upper, grids, index, scheme)
    assert made_codes.dtype == torch.uint8
    if FUSED and weight.device.type == "cpu":
        assert torch.equal(made_codes, codes)
        assert torch.equal(made_errors, errors)
        assert torch.equal(found, expected)
    else:
        assert (made_codes == codes).float().mean() > 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("isa", packed.ISAS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_it_is_the_plain_loop_bit_for_bit(device, isa, scheme, monkeypatch):
    monkeypatch.setenv("BITSWEEP_CPU_ISA", isa)
    try:
        packed.cpu_isa()
    except RuntimeError as error:
        pytest.skip(str(error))
    for columns, rows, count in ((128, 200, 128), (7, 65, 5), (1, 1, 1), (33, 16, 32)):
        weight, upper, grids = block(columns, rows, 1, scheme, device=device)
        assert_same(weight, upper, grids, [0] * count, scheme)


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
    if count:
        assert_same(weight, upper, grids, index, scheme)
    else:
        codes, errors = fused(weight, upper, grids, index, scheme)
        assert codes.shape == errors.shape == (0, rows)


def test_a_strided_factor_and_a_thousand_repeats():
    weight, upper, grids = block(40, 130)
    wide = torch.full((40, 100), float("nan"))
    wide[:, 11:51] = upper
    first, expected = weight.clone(), weight.clone()
    codes, errors = fused(first, upper, grids, [0] * 40, SCHEMES[0])
    for _ in range(1000):
        again = weight.clone()
        found = fused(again, wide[:, 11:51], grids, [0] * 40, SCHEMES[0])
        assert torch.equal(found[0], codes)
        assert torch.equal(found[1], errors)
        assert torch.equal(again, first)
    assert not torch.equal(first, expected)


def test_the_last_column_and_those_left_out():
    """Values lie on the grid, and columns beyond `count` are exactly w - sum of updates."""
    scheme = Scheme(4)
    weight, upper, grids = block(10, 3, 1, scheme)
    weight, upper, kept = weight, upper, weight.clone()
    codes, errors = fused(weight, upper, grids, [0] * 6, scheme)
    values = (codes.float() - grids.zero) * grids.scale
    assert torch.equal(weight[:6], values)
    expected = kept[6:].double() - upper[:6, 6:].double().T @ errors.double()
    torch.testing.assert_close(weight[6:].double(), expected, rtol=1e-5, atol=1e-5)


def test_non_finite_weights_give_non_finite_errors():
    for scheme in (Scheme(4), Scheme(2, 8, levels="ternary")):
        for bad in (float("nan"), float("inf")):
            weight, upper, grids = block(8, 20, 1, scheme)
            weight[3, 4] = bad
            codes, errors = fused(weight, upper, grids, [0] * 8, scheme)
            assert not torch.isfinite(errors.square().sum())
            assert int(codes.max()) <= scheme.max_code


def test_fake_tensors_and_opcheck():
    weight, upper, grids = block(8, 20)
    arguments = (weight, upper, grids.scale, grids.zero, None, None, 8, 3)
    torch.library.opcheck(
        torch.ops.bitsweep.gptq_sweep, arguments, test_utils=("test_schema", "test_faketensor")
    )


def call(**changes):
    weight, upper, grids = block(8, 20, 2)
    arguments = {
        "weight": weight,
        "upper": upper,
        "scale": grids.scale,
        "zero": grids.zero,
        "negative": None,
        "group": torch.zeros(8, dtype=torch.int32),
        "count": 8,
        "max_code": 3,
    }
    return gptq_sweep(**{**arguments, **changes})


WRONG = [
    ({"weight": torch.zeros(8, 20).double()}, "weight is not float32"),
    ({"weight": torch.zeros(20, 8).T}, "weight is not contiguous"),
    ({"weight": torch.zeros(8)}, r"weight has 1 dimensions; expected \[columns, rows\]"),
    ({"upper": torch.eye(7)}, r"upper is \[7, 7\]; expected \[8, 8\]"),
    ({"upper": torch.ones(8, 8).triu().T}, "rows of upper are not contiguous"),
    ({"scale": torch.ones(2, 19)}, r"scale is \[2, 19\]; expected \[2, 20\]"),
    ({"zero": None}, "neither of zero .* given"),
    ({"negative": torch.ones(2, 20)}, "both of zero .* given"),
    ({"group": None}, "scale holds 2 groups; pass group"),
    ({"group": torch.zeros(8)}, "group is not int32"),
    ({"group": torch.full((8,), 2, dtype=torch.int32)}, r"group\[0\]=2, but scale holds 2"),
    ({"count": 9}, "count=9 of 8"),
    ({"max_code": 256}, "max_code=256"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[case[1][:24] for case in WRONG])
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(RuntimeError, match=message):
        call(**changes)
    call()
