"""QuantizedWeight: the values that codes stand for."""

from dataclasses import replace

import pytest
import torch

from quant.scheme import Scheme
from quant.solvers import rtn
from quant.weight import QuantizedWeight


def test_uniform_values_by_hand():
    weight = QuantizedWeight(
        codes=torch.tensor([[0, 15, 8, 3], [1, 2, 3, 4]], dtype=torch.uint8),
        scale=torch.tensor([[0.5, 2.0], [1.0, 0.25]], dtype=torch.float16),
        zero=torch.tensor([[8, 3], [0, 15]], dtype=torch.uint8),
        scheme=Scheme(4, 2),
    )
    assert weight.shape == (2, 4)
    assert weight.column_groups().tolist() == [0, 0, 1, 1]
    expected = [[-4.0, 3.5, 10.0, 0.0], [1.0, 2.0, -3.0, -2.75]]
    assert weight.dequantize().tolist() == expected
    assert weight.dequantize().dtype == torch.float32
    assert weight.dequantize(torch.float16).dtype == torch.float16


def test_group_index_says_which_group_a_column_is_in():
    weight = QuantizedWeight(
        codes=torch.tensor([[1, 1, 1, 1]], dtype=torch.uint8),
        scale=torch.tensor([[1.0, 10.0]]),
        zero=torch.zeros(1, 2, dtype=torch.uint8),
        scheme=Scheme(2, 2, scale_dtype="float32"),
        group_index=torch.tensor([1, 0, 0, 1], dtype=torch.int32),
    )
    assert weight.column_groups().dtype == torch.int64
    assert weight.dequantize().tolist() == [[10.0, 1.0, 1.0, 10.0]]


def test_ternary_values_by_hand():
    weight = QuantizedWeight(
        codes=torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]], dtype=torch.uint8),
        scale=torch.tensor([[0.5], [0.0]], dtype=torch.float16),
        zero=None,
        scheme=Scheme(2, levels="ternary"),
        negative_scale=torch.tensor([[0.25], [3.0]], dtype=torch.float16),
    )
    assert weight.dequantize().tolist() == [[-0.25, 0.0, 0.5, -0.25], [0.0, 0.0, 0.0, -3.0]]


def test_a_grid_of_other_tensors_is_refused():
    codes, scale = torch.zeros(1, 4, dtype=torch.uint8), torch.ones(1, 1)
    with pytest.raises(
        ValueError, match="w4 has a grid of scale, zero, not of scale; pass exactly"
    ):
        QuantizedWeight(codes, Scheme(4), scale=scale)
    with pytest.raises(ValueError, match="ternary has a grid of scale, negative_scale, not of no"):
        QuantizedWeight(codes, Scheme(2, levels="ternary"))


def test_fields_can_be_replaced_and_the_grid_moved():
    weight = QuantizedWeight(
        codes=torch.tensor([[1, 2]], dtype=torch.uint8),
        scheme=Scheme(4),
        scale=torch.tensor([[2.0]]),
        zero=torch.tensor([[1]], dtype=torch.uint8),
    )
    other = replace(weight, scale=torch.tensor([[3.0]]), zero=None)
    assert other.dequantize().tolist() == [[0.0, 3.0]]
    assert weight.dequantize().tolist() == [[0.0, 2.0]]
    assert weight.negative_scale is None
    assert {part.device.type for part in weight.to("meta").grid.values()} == {"meta"}
    assert weight.to("meta").codes.device.type == "meta"


def test_one_grid_a_row_needs_no_group_size():
    weight = QuantizedWeight(
        codes=torch.full((1, 5), 200, dtype=torch.uint8),
        scale=torch.tensor([[0.5]]),
        zero=torch.tensor([[100]], dtype=torch.uint8),
        scheme=Scheme(8),
    )
    assert weight.dequantize().tolist() == [[50.0] * 5]


@pytest.mark.parametrize(
    ("codes", "entropy"),
    [([0, 1, 2, 3], 2.0), ([5, 5, 5, 5], 0.0), ([0, 0, 1, 1], 1.0), ([0, 0, 0, 1], 0.8112781245)],
)
def test_the_entropy_of_codes_by_hand(codes, entropy):
    weight = QuantizedWeight(
        codes=torch.tensor([codes], dtype=torch.uint8),
        scale=torch.tensor([[1.0]]),
        zero=torch.tensor([[0]], dtype=torch.uint8),
        scheme=Scheme(4),
    )
    assert weight.entropy() == pytest.approx(entropy, abs=1e-9)


def test_two_codes_of_one_level_are_one_in_the_entropy():
    scheme = Scheme.parse("nvfp4g16")
    positive, negative = scheme.kind.alike
    grid = rtn.solve(torch.randn(1, 16), scheme).weight
    codes = torch.tensor([[positive, negative] * 8], dtype=torch.uint8)
    assert replace(grid, codes=codes).entropy() == 0
