"""The figures of one layer beside plain float64 arithmetic."""

import pytest
import torch

from quant.audit.layer import audit_layer
from quant.audit.moments import moments
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.quant.audit.synthetic import make


@pytest.mark.parametrize("seed", range(4))
def test_errors_equal_those_of_plain_float64(seed):
    made = make("solved on other text", seed)
    seen, better, found = audit_layer(
        made.weight, made.quantized, moments(made.hessian, made.tokens), "auto", "layer"
    )
    weight, hessian = made.weight.double(), made.hessian.double()

    def error(quantized):
        apart = weight - quantized.double()
        whole = torch.trace(weight @ hessian @ weight.T)
        return float(torch.trace(apart @ hessian @ apart.T) / whole)

    assert seen.error == pytest.approx(error(made.quantized.dequantize()), rel=1e-3)
    assert seen.solver_error == pytest.approx(error(better.dequantize()), rel=1e-3)
    assert seen.solver_error < seen.rounding_error
    assert found.words is None
    apart = (weight - made.quantized.dequantize().double()).norm() / weight.norm()
    assert seen.weight_error == pytest.approx(float(apart), rel=1e-5)


def test_rank_and_condition_count_what_the_text_has():
    basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)))[0]
    sizes = torch.zeros(40)
    sizes[:10] = torch.logspace(0, 2, 10)
    found = moments(basis @ torch.diag(sizes) @ basis.T, tokens=1000)
    assert found.rank == 10
    assert found.condition == pytest.approx(100, rel=1e-3)
    assert moments(torch.eye(40), tokens=7).rank == 7  # seven tokens span no more


def test_unused_levels_and_outlying_scales_are_seen():
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).sign()
    weight[0] *= 50
    made = rtn.solve(weight, Scheme(4, symmetric=True)).weight
    text = torch.randn(300, 64, generator=torch.Generator().manual_seed(2))
    text[:, 3] = 0
    seen, _, _ = audit_layer(weight, made, moments(text.T @ text, 300), "auto", "layer")
    assert seen.levels == len(made.codes.unique()) <= 4
    assert seen.of_levels == 16
    assert seen.scale_spread == pytest.approx(50, rel=0.01)
    assert seen.dead_columns == 1
