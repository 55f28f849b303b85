"""RTN: every group of every row on its own grid."""

import numpy as np
import pytest
import torch

from quant.errors import NonFiniteError, QuantizationError
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Layer
from tests.oracles.textbook_gptq import code_of, find_levels

WEIGHT = torch.randn(6, 48, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("size", [None, 48, 24, 16, 3, 1])
@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 2},
        {"bits": 3, "symmetric": True},
        {"bits": 4, "grid": "mse"},
        {"bits": 8, "scale_dtype": "float32"},
        {"bits": 2, "levels": "ternary"},
    ],
)
def test_groups_equal_the_oracle(fields, size):
    scheme = Scheme(group_size=size, **fields)
    solution = rtn.solve(WEIGHT.double(), scheme)
    weight, width = solution.weight, size or 48
    assert solution.loss is None
    assert solution.damping is None
    assert weight.scale.shape == (6, 48 // width)
    assert weight.scale.dtype == getattr(torch, scheme.scale_dtype)
    assert weight.group_index is None
    values = np.zeros((6, 48))
    for row in range(6):
        for start in range(0, 48, width):
            numbers = WEIGHT.double().numpy()[row, start : start + width]
            levels = find_levels(
                numbers,
                scheme.bits,
                scheme.symmetric,
                scheme.levels == "ternary",
                scheme.grid == "mse",
                scheme.scale_dtype,
            )
            codes = [code_of(w, levels) for w in numbers.tolist()]
            assert weight.codes[row, start : start + width].tolist() == codes
            values[row, start : start + width] = levels.values[codes]
    np.testing.assert_allclose(weight.dequantize().numpy(), values, rtol=2e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_group_of_all_columns_is_one_grid_a_row(bits):
    whole, grouped = rtn.solve(WEIGHT, Scheme(bits)), rtn.solve(WEIGHT, Scheme(bits, 48))
    assert torch.equal(whole.weight.codes, grouped.weight.codes)
    assert torch.equal(whole.weight.dequantize(), grouped.weight.dequantize())


def test_more_bits_and_smaller_groups_are_closer():
    def error(scheme):
        return float((rtn.solve(WEIGHT, scheme).weight.dequantize() - WEIGHT).norm())

    by_bits = [error(Scheme(bits)) for bits in (2, 3, 4, 8)]
    by_group = [error(Scheme(3, size)) for size in (48, 24, 12, 6)]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_group == sorted(by_group, reverse=True)


def test_half_precision_and_graph_weights_are_read_not_touched():
    half = WEIGHT.half()
    expected = rtn.solve(half.float(), Scheme(4)).weight
    weight = torch.nn.Parameter(half.clone())
    solved = rtn.solve(weight, Scheme(4)).weight
    assert torch.equal(solved.codes, expected.codes)
    assert torch.equal(weight.data, half)
    assert not solved.scale.requires_grad


def test_bad_input_names_the_layer():
    broken = WEIGHT.clone()
    broken[2, 5] = float("nan")
    with pytest.raises(NonFiniteError, match=r"fc2: 1 of 288 weights.*row 2, column 5"):
        rtn.solve(broken, Scheme(4), layer=Layer("fc2"))
    with pytest.raises(QuantizationError, match=r"fc2: .*bfloat16"):
        rtn.solve(WEIGHT * 1e8, Scheme(4), layer=Layer("fc2"))
