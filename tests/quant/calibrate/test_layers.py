"""What a solver gives is checked before anything is made of it: solvers of anybody run here."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from quant.calibrate.layers import require_solution
from quant.errors import QuantizationError
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.solvers.base import Solution

SCHEME = Scheme(4, 16)
WEIGHT = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
GOOD = rtn.solve(WEIGHT, SCHEME)


def changed(**parts: Any) -> Solution:
    return replace(GOOD, weight=replace(GOOD.weight, **parts))


def test_what_fits_is_taken() -> None:
    require_solution(GOOD, WEIGHT, SCHEME, "fc1: solver rtn")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "returned a NoneType; return a quant.solvers.base.Solution"),
        (rtn.solve(WEIGHT, Scheme(3, 16)), "was asked for w4g16 and returned w3g16"),
        (
            rtn.solve(WEIGHT[:1], SCHEME),
            r"returned codes torch.uint8 \[1, 32\]; return",
        ),
        (changed(codes=GOOD.weight.codes.int()), "returned codes torch.int32"),
        (changed(codes=GOOD.weight.codes + 9), "returned the code 2[0-9], but w4g16 has 0 to 15"),
        (
            changed(grid={**GOOD.weight.grid, "scale": torch.ones(6, 1)}),
            r"returned a scale torch.float32 of shape \[6, 1\]; return finite values torch.float16",
        ),
        (
            changed(grid={**GOOD.weight.grid, "scale": torch.full((6, 2), torch.nan).half()}),
            r"returned a scale torch.float16 of shape \[6, 2\]; return finite values",
        ),
        (replace(GOOD, loss=float("nan")), "returned the loss nan"),
    ],
)
def test_what_does_not_is_named(given: Any, sentence: str) -> None:
    with pytest.raises(QuantizationError, match=rf"fc1: solver rtn {sentence}"):
        require_solution(given, WEIGHT, SCHEME, "fc1: solver rtn")
