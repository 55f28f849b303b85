"""Equalize by hand in float64, and what it does to the layers of a block."""

import numpy as np
import pytest
import torch

from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.transforms import equalize
from quant.transforms.base import Group, Scaling

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(3, 40, 24, generator=GENERATOR, dtype=torch.float64)
INPUTS *= torch.randn(24, generator=GENERATOR, dtype=torch.float64).mul(2).exp()
WEIGHT = torch.randn(5, 24, generator=GENERATOR, dtype=torch.float64)


def group(inputs: torch.Tensor) -> Group:
    hessian = Hessian(24, dtype=torch.float64)
    hessian.update(inputs)
    return Group("q", ("q",), (WEIGHT,), hessian.matrix(), Scheme(3))


def textbook_scale(inputs: np.ndarray, strength: float, powers: bool) -> np.ndarray:
    """(a_j / geometric mean of a)^strength, column by column; a_j = 0 is left at 1."""
    sizes = [np.sqrt(np.mean(column**2)) for column in inputs.reshape(-1, inputs.shape[-1]).T]
    middle = np.prod([size ** (1 / np.count_nonzero(sizes)) for size in sizes if size])
    scales = [(size / middle) ** strength if size else 1.0 for size in sizes]
    return np.array([2.0 ** np.round(np.log2(s)) if powers else s for s in scales])


@pytest.mark.parametrize("powers", [True, False])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_scales_are_those_of_the_textbook(strength: float, powers: bool) -> None:
    inputs = INPUTS.clone()
    inputs[..., [3, 17]] = 0
    change = equalize.change(group(inputs), equalize.Options(strength, powers))
    assert change is not None
    expected = textbook_scale(inputs.numpy(), strength, powers)
    np.testing.assert_allclose(change.scale.numpy(), expected, rtol=0 if powers else 1e-7)
    assert expected.max() / expected.min() >= 4  # else there would be nothing to compare


def test_a_scaling_is_one_change_of_coordinates_everywhere() -> None:
    change = Scaling(torch.rand(24, generator=GENERATOR, dtype=torch.float64) + 0.1)
    moved, weight = change.inputs(INPUTS), change.weight(WEIGHT)
    torch.testing.assert_close(moved @ weight.T, INPUTS @ WEIGHT.T, rtol=1e-12, atol=1e-12)
    seen, first = group(moved).hessian, change.hessian(group(INPUTS).hessian)
    torch.testing.assert_close(first, seen, rtol=1e-12, atol=1e-12)
    assert torch.equal(first, first.T)


def test_full_strength_makes_all_inputs_equal() -> None:
    change = equalize.change(group(INPUTS), equalize.Options(1.0, False))
    assert change is not None
    sizes = change.inputs(INPUTS).square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(sizes, sizes.mean().expand(24), rtol=1e-6, atol=0)


def test_rounding_errors_count_for_less() -> None:
    """The outputs of a layer whose inputs differ in size by orders of magnitude."""
    change = equalize.change(group(INPUTS))
    assert change is not None
    plain = rtn.solve(WEIGHT, Scheme(3)).weight.dequantize().double()
    moved = rtn.solve(change.weight(WEIGHT), Scheme(3)).weight.dequantize().double()
    expected = INPUTS @ WEIGHT.T
    errors = [
        (found - expected).norm() for found in (INPUTS @ plain.T, change.inputs(INPUTS) @ moved.T)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_nothing_is_changed_where_there_is_nothing_to_equalize() -> None:
    assert equalize.change(group(INPUTS), equalize.Options(strength=0)) is None
    assert equalize.change(group(torch.zeros(1, 4, 24))) is None


def test_options_say_what_they_are_and_what_they_cannot_be() -> None:
    assert equalize.describe(equalize.Options()) == []
    assert equalize.describe(equalize.Options(0.75, False)) == ["strength 0.75", "any scale"]
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"strength=.* is not between 0 .*; use 0\.5"):
            equalize.Options(strength)
