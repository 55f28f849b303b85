"""RepQuant number by number, its one range for all inputs, and the Hessian of shifted inputs."""

import numpy as np
import pytest
import torch

from quant.calibrate.statistics import InputStatistics
from quant.errors import QuantizationError
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.transforms import repquant
from quant.transforms.base import Group, Scaling

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(3, 40, 24, generator=GENERATOR, dtype=torch.float64)
INPUTS *= torch.randn(24, generator=GENERATOR, dtype=torch.float64).exp()
INPUTS += 2 * torch.randn(24, generator=GENERATOR, dtype=torch.float64)
WEIGHT = torch.randn(5, 24, generator=GENERATOR).double()


def hessian_of(inputs: torch.Tensor) -> torch.Tensor:
    hessian = Hessian(24, dtype=torch.float64)
    hessian.update(inputs)
    return hessian.matrix()


def group(inputs: torch.Tensor, biased: bool = True) -> Group:
    statistics = InputStatistics(24)
    statistics.update(inputs)
    return Group(
        "a", ("a",), (WEIGHT,), hessian_of(inputs), Scheme(8), statistics.result(),
        count=2 * 40, biased=biased,
    )  # fmt: skip


def textbook(inputs: np.ndarray, clip: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift as the authors' code makes them of 8-bit grids, zero-points not rounded."""
    deltas, zeros = [], []
    for column in inputs.T:
        low, high = column.min(), column.max()
        if clip is not None:
            reach = clip * np.sqrt(np.mean((column - column.mean()) ** 2))
            low, high = max(low, column.mean() - reach), min(high, column.mean() + reach)
        deltas.append((high - low) / 255)
        zeros.append(-low / deltas[-1])
    delta, zero = np.array(deltas), np.array(zeros)
    scale = delta / delta.mean()
    return scale, -zero * delta / scale + zero.mean() * delta.mean()


@pytest.mark.parametrize("clip", [None, 1.5])
def test_scale_and_shift_are_those_of_the_textbook(clip: float | None) -> None:
    change = repquant.change(group(INPUTS), repquant.Options(clip=clip))
    assert isinstance(change, repquant.Shifted)
    scale, shift = textbook(INPUTS.reshape(-1, 24).numpy(), clip)
    np.testing.assert_allclose(change.scale.numpy(), scale, rtol=1e-6)
    np.testing.assert_allclose(change.shift.numpy(), shift, rtol=1e-5, atol=1e-6)


def test_all_inputs_get_one_range() -> None:
    moved = repquant.change(group(INPUTS)).inputs(INPUTS).reshape(-1, 24)
    for end in (moved.amin(dim=0), moved.amax(dim=0)):
        torch.testing.assert_close(end, end.mean().expand(24), rtol=1e-5, atol=1e-5)
    change = repquant.change(group(INPUTS, biased=False), repquant.Options(shift=False))
    assert isinstance(change, Scaling)
    most = change.inputs(INPUTS).abs().amax(dim=(0, 1))
    torch.testing.assert_close(most, most.mean().expand(24), rtol=1e-6, atol=0)


def test_a_shift_is_one_change_of_coordinates_everywhere() -> None:
    change = repquant.change(group(INPUTS))
    moved = change.inputs(INPUTS)
    outputs = moved @ change.weight(WEIGHT).T + change.bias(WEIGHT)
    torch.testing.assert_close(outputs, INPUTS @ WEIGHT.T, rtol=1e-12, atol=1e-12)
    found = change.hessian(hessian_of(INPUTS))
    torch.testing.assert_close(found, hessian_of(moved), rtol=1e-11, atol=1e-9)
    assert torch.equal(found, found.T)


def test_inputs_that_never_change_keep_their_scale() -> None:
    inputs = INPUTS.clone()
    inputs[..., 3], inputs[..., 4] = 0, 5
    change = repquant.change(group(inputs))
    assert change.scale[[3, 4]].tolist() == [1, 1]
    assert bool(change.shift.isfinite().all())
    assert repquant.change(group(inputs * 0)) is None


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"a has no bias .*; use shift=false"):
        repquant.change(group(INPUTS, biased=False))
    for clip in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"clip=.* is not a number of .*; use 6, or null"):
            repquant.Options(clip=clip)
    assert repquant.describe(repquant.Options()) == []
    words = repquant.describe(repquant.Options(shift=False, clip=6))
    assert words == ["scale only", "clipped at 6 sd"]
