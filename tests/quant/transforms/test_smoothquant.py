"""SmoothQuant number by number, and what alpha means at its ends."""

import numpy as np
import pytest
import torch

from quant.calibrate.statistics import InputStatistics
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.transforms import smoothquant
from quant.transforms.base import Group

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(3, 40, 24, generator=GENERATOR, dtype=torch.float64)
INPUTS *= torch.randn(24, generator=GENERATOR, dtype=torch.float64).mul(2).exp()
INPUTS[..., 7] = -INPUTS[..., 7].abs()  # its largest magnitude is a minimum
WEIGHTS = tuple(torch.randn(rows, 24, generator=GENERATOR).double() for rows in (5, 9))


def group(inputs: torch.Tensor, weights: tuple[torch.Tensor, ...] = WEIGHTS) -> Group:
    hessian, statistics = Hessian(24, dtype=torch.float64), InputStatistics(24)
    hessian.update(inputs)
    statistics.update(inputs)
    names = tuple("abc"[: len(weights)])
    return Group("a", names, weights, hessian.matrix(), Scheme(8), statistics.result())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_scales_are_those_of_the_equation(alpha: float) -> None:
    inputs, weights = INPUTS.clone(), [w.clone() for w in WEIGHTS]
    inputs[..., 3] = 0
    for weight in weights:
        weight[:, 5] = 0
    change = smoothquant.change(group(inputs, tuple(weights)), smoothquant.Options(alpha))
    assert change is not None
    for j in range(24):
        largest = max(abs(float(x)) for x in inputs[..., j].flatten())
        column = max(abs(float(w)) for weight in weights for w in weight[:, j])
        expected = 1.0 if j == 3 else largest**alpha / max(column, 1e-5) ** (1 - alpha)
        np.testing.assert_allclose(float(change.scale[j]), max(expected, 1e-5), rtol=1e-6)


def test_the_ends_make_inputs_or_weights_equal_and_the_middle_both() -> None:
    for alpha, share_of_inputs in ((0.0, 0.0), (1.0, 1.0), (0.5, 0.5)):
        change = smoothquant.change(group(INPUTS), smoothquant.Options(alpha))
        assert change is not None
        x = change.inputs(INPUTS).abs().amax(dim=(0, 1))
        w = torch.cat([change.weight(each) for each in WEIGHTS]).abs().amax(dim=0)
        if share_of_inputs != 0.5:
            equal = x if share_of_inputs else w
            torch.testing.assert_close(equal, torch.ones(24).double(), rtol=1e-6, atol=0)
        else:
            torch.testing.assert_close(x, w, rtol=1e-6, atol=0)


def test_nothing_to_change_and_options() -> None:
    assert smoothquant.change(group(INPUTS * 0)) is None
    assert smoothquant.describe(smoothquant.Options()) == []
    options = smoothquant.Options(alpha=0.75, keep="always")
    assert smoothquant.describe(options) == ["alpha 0.75", "kept"]
    for alpha in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"alpha=.* is not between 0 .*; use 0\.5"):
            smoothquant.Options(alpha)
