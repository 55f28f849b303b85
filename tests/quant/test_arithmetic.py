"""Which arithmetic a quantization computes in: a rule that needs no machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quant.arithmetic import AUTO, FAST, PORTABLE, resolve_arithmetic
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.scheme import Scheme
from quant.solvers import gptq


@pytest.mark.parametrize(
    ("wish", "device", "parameters", "found"),
    [
        (AUTO, "cpu", 10**9 - 1, PORTABLE),
        (AUTO, "cpu", 10**9, FAST),
        (AUTO, "cuda:0", 10**6, FAST),
        (PORTABLE, "cuda", 10**12, PORTABLE),
        (FAST, "cpu", 1, FAST),
    ],
)
def test_the_rule_needs_no_machine(wish: str, device: str, parameters: int, found: str) -> None:
    assert resolve_arithmetic(wish, device, parameters) == found


def test_an_unknown_arithmetic_is_refused_and_each_is_another_identity() -> None:
    config = QuantizationConfig(gptq.SOLVER, Scheme(4))
    with pytest.raises(QuantizationError, match="choose one of auto, portable, fast"):
        replace(config, arithmetic="exact")
    assert replace(config, arithmetic=FAST).identity() != config.identity()
