"""Experts that saw too few tokens: refused by name, or what is allowed, and recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.errors import CalibrationError
from quant.rules import Rules
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from tests.quant.architectures import random_windows
from tests.quant.mixtures import HIDDEN, tiny_mixture

WINDOWS = random_windows(8, 24)


W4 = Scheme(bits=4, group_size=16)


def lonely() -> PreTrainedModel:
    """A router that sends no token of the first block to expert 3, and five a batch to expert 2."""
    model = tiny_mixture("mixtral")
    forward = model.model.layers[0].mlp.gate.forward

    def send(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, weights, index = forward(hidden)
        index = torch.tensor([[0, 1]]).repeat(len(index), 1)
        index[:5, 1] = 2
        return scores, weights, index

    model.model.layers[0].mlp.gate.forward = send
    return model


def test_experts_without_enough_tokens_follow_the_rule_that_is_allowed() -> None:
    def config(**rules: Any) -> QuantizationConfig:
        return QuantizationConfig(gptq.SOLVER, W4, rules=Rules(**rules), batch_tokens=48)

    with pytest.raises(
        CalibrationError,
        match=r"experts\.2\.w1 20 of 32, .*experts\.3\.w1 0 of 32.*method\.few_tokens=damp",
    ):
        quantize_model(lonely(), WINDOWS, config())
    with pytest.raises(CalibrationError, match=r"\(model\.layers\.0\.mlp\.experts\.3\.w1 0 of 32"):
        quantize_model(lonely(), WINDOWS, config(few_tokens="damp"))

    model = lonely()
    plain = {n: p.clone() for n, p in model.named_parameters()}
    result = quantize_model(model, WINDOWS, config(few_tokens="rtn"))
    named = {layer.name: layer for layer in result.layers if layer.fallback}
    assert len(named) >= 6
    for expert, count in ((2, 20), (3, 0)):
        layer = named[f"model.layers.0.mlp.experts.{expert}.w1"]
        assert layer.method == "rtn"
        assert layer.tokens == count
        assert layer.fallback == (
            f"{count} calibration tokens were routed to it, under 32: rounded to nearest"
        )
        weight = plain["model.layers.0.mlp.experts.gate_up_proj"][expert, :48]
        expected = rtn.solve(weight, W4).weight
        assert torch.equal(result.weights[layer.name].codes, expected.codes)


def test_a_shrunk_hessian_is_between_its_own_and_the_identity() -> None:
    from quant.calibrate.few import FewTokens

    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(2)).double()
    hessian = x.T @ x
    mean = hessian.diagonal().mean()
    expected = 0.25 * hessian + 0.75 * mean * torch.eye(HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(FewTokens(8, 32, rounded=False).shrunk(hessian.clone()), expected)
