"""Scaled weights are found by their factors, and unscaled ones are left alone."""

import pytest
import torch

from quant.audit.coordinates import Coordinates, find_coordinates
from quant.audit.layer import audit_layer
from quant.audit.moments import moments
from quant.audit.verdict import ROUNDED, judge
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.solvers.base import Layer

DRAW = torch.Generator().manual_seed(5)
WEIGHT = torch.randn(96, 64, generator=DRAW)
COLUMNS = torch.exp(0.7 * torch.randn(64, generator=DRAW))
ROWS = torch.exp(0.7 * torch.randn(96, generator=DRAW))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (None, None, None),
        (None, COLUMNS, "columns"),
        (ROWS, None, "rows"),
        (ROWS, COLUMNS, "rows and columns"),
    ],
)
def test_the_factors_of_a_rounded_weight(rows, columns, words, bits):
    scaled = Coordinates(rows, columns).scaled(WEIGHT)
    quantized = rtn.solve(scaled, Scheme(bits, 32)).weight.dequantize()
    found = find_coordinates(WEIGHT, quantized)
    assert found.words == words
    if words is not None:
        torch.testing.assert_close(found.unscaled(found.scaled(WEIGHT)), WEIGHT)
    if words is not None and bits > 2:  # at 2 bits small columns are all 0
        apart = (found.scaled(WEIGHT) / scaled - 1).abs()
        assert (apart <= 4 * found.uncertainty).float().mean() > 0.97
        assert apart.median() < 0.04 * 4 ** (4 - bits)


def test_shrinking_a_whole_weight_is_no_scaling():
    assert find_coordinates(WEIGHT, 0.8 * WEIGHT).words is None


def test_a_solved_weight_is_no_scaled_one():
    text = torch.randn(300, 64, generator=DRAW) @ torch.randn(64, 64, generator=DRAW)
    options, layer = gptq.Options(), Layer(tokens=300)
    prepared = gptq.prepare(text.T @ text, options, layer)
    for bits in (2, 3, 4):
        made = gptq.solve(WEIGHT, Scheme(bits), prepared, options, layer).weight
        assert find_coordinates(WEIGHT, made.dequantize()).words is None


def test_a_weight_rounded_in_scaled_columns_is_called_rounded():
    """AWQ without its clipping: judged in its own coordinates, not as a solved one."""
    text = torch.randn(300, 64, generator=DRAW)
    hessian = text.T @ text
    made = rtn.solve(WEIGHT * COLUMNS, Scheme(4, 32)).weight
    seen, _, found = audit_layer(WEIGHT, made, moments(hessian, 300), "auto", "layer")
    values = found.unscaled(made.dequantize())
    assert seen.scaled == "columns"
    assert judge(seen).name == ROUNDED
    assert (values - WEIGHT).norm() / WEIGHT.norm() < 0.3  # back beside the base
    # The Hessian of x / s weighs errors of W diag(s) as that of x weighs errors of W.
    apart = values - WEIGHT
    expected = ((apart @ hessian) * apart).sum() / ((WEIGHT @ hessian) * WEIGHT).sum()
    assert seen.error == pytest.approx(float(expected), rel=0.05)
