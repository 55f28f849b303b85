"""AWQ against a brute-force float64 oracle with explicit inputs, and what its search promises."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from quant.calibrate.statistics import InputStatistics
from quant.hessian import Hessian
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.transforms import awq
from quant.transforms.base import Group

INPUTS, TOKENS = 24, 90
SCHEMES = [
    Scheme(3, group_size=8, scale_dtype="float32"),
    Scheme(2, scale_dtype="float32"),
    Scheme(4, group_size=10, scale_dtype="float32"),  # a short last group
]


def layers(seed: int, dead: tuple[int, ...] = ()) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Inputs [3, 30, in] of very unequal size, and the weights of two layers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(3, 30, INPUTS) @ (torch.eye(INPUTS) + 0.2 * normal(INPUTS, INPUTS))
    x *= normal(INPUTS).mul(1.5).exp()
    x[..., list(dead)] = 0
    return x, (normal(5, INPUTS), normal(7, INPUTS))


def group(
    x: torch.Tensor,
    weights: tuple[torch.Tensor, ...],
    scheme: Scheme,
    tied: torch.Tensor | None = None,
) -> Group:
    hessian, statistics = Hessian(INPUTS, dtype=torch.float64), InputStatistics(INPUTS)
    for batch in x.split(2):
        hessian.update(batch)
        statistics.update(batch)
    names = tuple(f"layer{index}" for index in range(len(weights)))
    return Group("layer0", names, weights, hessian.matrix(), scheme, statistics.result(), tied)


def textbook_round(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Min-max grids, asymmetric, number by number."""
    result = np.empty_like(weight)
    size, most = scheme.group_size or weight.shape[1], 2**scheme.bits - 1
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            part = weight[row, start : start + size]
            low, high = min(part.min(), 0.0), max(part.max(), 0.0)
            step = float(np.float32((high - low) / most))
            zero = min(max(np.round(-low / step), 0), most)
            codes = [min(max(np.round(w / step) + zero, 0), most) for w in part]
            result[row, start : start + size] = [(code - zero) * step for code in codes]
    return result


def textbook_scales(
    x: np.ndarray, weights: list[np.ndarray], scheme: Scheme, options: awq.Options
) -> Iterator[np.ndarray]:
    """The grid of the paper and of its code, with s = 1 first."""
    yield np.ones(INPUTS)
    magnitude = np.array([np.mean([abs(v) for v in column]) for column in x.T])
    size = scheme.group_size or INPUTS
    relative = np.empty((sum(len(w) for w in weights), INPUTS))
    for row, weight in enumerate(np.concatenate(weights)):
        for j, value in enumerate(weight):
            start = j // size * size
            relative[row, j] = abs(value) / (np.abs(weight[start : start + size]).max() + 1e-6)
    for step in range(options.steps):
        alpha = step / options.steps
        scale = magnitude**alpha
        if options.duo_scaling:
            scale = scale / (relative.mean(axis=0) ** (1 - alpha) + 1e-4)
        scale = np.maximum(scale, 1e-4)
        yield scale / np.sqrt(scale.max() * scale.min())


def textbook_error(
    x: np.ndarray, weights: list[np.ndarray], scale: np.ndarray, scheme: Scheme
) -> float:
    """||(W - Q(W diag(s)) diag(s)^-1) X||^2 of all layers, with X itself."""
    return sum(
        np.sum(((w - textbook_round(w * scale, scheme) / scale) @ x.T) ** 2) for w in weights
    )


@pytest.mark.parametrize("duo", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_is_that_of_brute_force(seed: int, scheme: Scheme, duo: bool) -> None:
    x, weights = layers(seed, dead=(4, 11) if seed else ())
    options = awq.Options(steps=10, duo_scaling=duo)
    flat, plain = x.reshape(-1, INPUTS).numpy(), [w.numpy() for w in weights]
    tried = list(textbook_scales(flat, plain, scheme, options))
    errors = [textbook_error(flat, plain, scale, scheme) for scale in tried]
    best = tried[int(np.argmin(errors))]
    assert sorted(errors)[1] > min(errors) * (1 + 1e-5)  # else rounding would decide
    assert min(errors) < 0.8 * errors[0]
    change = awq.change(group(x, weights, scheme), options)
    assert change is not None
    np.testing.assert_allclose(change.scale.numpy(), best, rtol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_the_error_is_that_of_the_outputs_and_never_above_plain_rounding(seed: int) -> None:
    """Measured with the inputs themselves, on what the solver is given."""
    x, weights = layers(seed + 10)
    scheme = Scheme(3, group_size=8)
    change = awq.change(group(x, weights, scheme))
    flat, errors = x.reshape(-1, INPUTS), []
    for each in (None, change):
        inputs = flat if each is None else each.inputs(flat)
        moved = weights if each is None else [each.weight(w) for w in weights]
        rounded = [rtn.solve(w, scheme).weight.dequantize(torch.float64) for w in moved]
        pairs = zip(weights, rounded, strict=True)
        errors.append(sum(float((flat @ w.T - inputs @ q.T).square().sum()) for w, q in pairs))
    assert errors[1] <= errors[0]


def test_tied_inputs_get_one_scale() -> None:
    x, weights = layers(3)
    tied = torch.arange(INPUTS) // 8 * 4 + torch.arange(INPUTS) % 4
    change = awq.change(group(x, weights, SCHEMES[0], tied))
    assert change is not None
    for number in tied.unique():
        assert len(change.scale[tied == number].unique()) == 1
    assert len(change.scale.unique()) == len(tied.unique())


def test_nothing_is_changed_where_no_scaling_has_less_error() -> None:
    x, weights = layers(5)
    assert awq.change(group(x.sign(), weights, SCHEMES[0])) is None  # all of one size


def test_options_say_what_they_are_and_what_they_cannot_be() -> None:
    assert awq.describe(awq.Options()) == []
    options = awq.Options(steps=10, duo_scaling=True, keep="where_needed")
    assert awq.describe(options) == ["10 steps", "duo scaling", "kept where needed"]
    with pytest.raises(ValueError, match=r"steps=1 leaves only alpha=0.*; use 20"):
        awq.Options(steps=1)
    with pytest.raises(ValueError, match=r"keep=some is unknown; choose one of never"):
        awq.Options(keep="some")
