"""Rounded inputs beside a textbook in exact fractions, and what a grid of activations keeps."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.transforms import round_inputs
from quant.transforms.base import Inputs, Statistics
from quant.transforms.round_inputs import Options, Rounding, rounding

GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randn(2, 20, 33, generator=GENERATOR) * torch.randn(33, generator=GENERATOR).exp()
TOKENS[0, 0] = 0
TOKENS[0, 1] = TOKENS[0, 1].abs()  # nothing below 0
TOKENS[0, 2] = torch.arange(33) - 16  # at 5 bits every second quotient of it ties
TOKENS[0, 3] *= 1e-30
GRIDS = [
    Options(bits, per, symmetric, clip)
    for bits in (2, 4, 5, 8)
    for per in ("token", "tensor")
    for symmetric in (True, False)
    for clip in (1.0, 0.8)
]


def statistics(x: Tensor) -> Statistics:
    rows = x.double().reshape(-1, x.shape[-1])
    return Statistics(rows.mean(0), rows.abs().mean(0), rows.amin(0), rows.amax(0))


def of(options: Options, seen: Tensor = TOKENS) -> Rounding:
    return rounding(Inputs("a", seen.shape[-1], statistics(seen)), options)


def textbook_grid(low: float, high: float, options: Options) -> tuple[Fraction, int]:
    """Scale, which a kernel has as a float32 number, and zero-point."""
    low, high, levels = options.clip * low, options.clip * high, 2**options.bits
    if options.symmetric:
        size = max(abs(low), abs(high)) / (levels // 2 - 1)
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        size = (high - low) / (levels - 1)
    scale = Fraction(max(float(np.float32(size)), 2.0**-126))
    return scale, 0 if options.symmetric else round(Fraction(-low) / scale)


def textbook(x: np.ndarray, low: float, high: float, options: Options) -> np.ndarray:
    """Every value by itself: Python's round of a fraction is to the nearest, half to even."""
    scale, zero = textbook_grid(low, high, options)
    levels = 2**options.bits
    first, last = (-levels // 2, levels // 2 - 1) if options.symmetric else (0, levels - 1)
    codes = [min(max(round(Fraction(float(v)) / scale) + zero, first), last) for v in x]
    return np.array([float((code - zero) * scale) for code in codes])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", GRIDS)
def test_every_value_is_that_of_the_textbook(options: Options, dtype: torch.dtype) -> None:
    x = TOKENS.to(dtype)
    rows = x.double().reshape(-1, x.shape[-1]).numpy()
    found = of(options, x).inputs(x)
    assert found.dtype == torch.float64
    assert found.shape == x.shape
    whole = (rows.min(), rows.max())
    for row, values in zip(rows, found.reshape(-1, x.shape[-1]).numpy(), strict=True):
        low, high = whole if options.per == "tensor" else (row.min(), row.max())
        np.testing.assert_array_equal(values, textbook(row, low, high, options))


@pytest.mark.parametrize("options", [each for each in GRIDS if each.clip == 1])
def test_values_move_by_half_a_step_at_most_and_then_stay(options: Options) -> None:
    change = of(options)
    once = change.inputs(TOKENS)
    scale = change.scale
    if scale is None:
        low, high = TOKENS.aminmax(dim=-1, keepdim=True)
        scale, _ = round_inputs.grid(low, high, options)
    assert ((once - TOKENS).abs() <= scale * (0.5 + 1e-6)).all()  # a float32 scale may be too small
    assert once[0, 0].eq(0).all()
    assert len(once[0, 5].unique()) <= 2**options.bits
    stored = once.float()  # what the layer reads
    again = change.inputs(stored).float()
    if options.per == "tensor":
        assert torch.equal(again, stored)
    elif options.symmetric:  # a range that was rounded gives a scale that is a last bit away
        torch.testing.assert_close(again, stored, rtol=3e-7, atol=0)


def test_more_bits_and_a_range_for_every_token_lose_less() -> None:
    def error(options: Options) -> float:
        return float((of(options).inputs(TOKENS) - TOKENS).norm())

    assert error(Options(8)) < error(Options(6)) < error(Options(4)) < error(Options(2))
    assert error(Options(4)) < error(Options(4, per="tensor"))
    positive = TOKENS.abs()
    own, other = Options(4, symmetric=False), Options(4)
    assert (of(own, positive).inputs(positive) - positive).norm() < 0.6 * (
        of(other, positive).inputs(positive) - positive
    ).norm()


def test_a_static_range_holds_for_tokens_outside_it() -> None:
    for symmetric in (True, False):
        change = of(Options(4, per="tensor", symmetric=symmetric))
        far = 10 * TOKENS
        low, high = change.inputs(far).aminmax()
        inside = change.inputs(torch.linspace(-1e4, 1e4, 5000)[None].expand(1, -1))
        assert (low, high) == tuple(inside.aminmax())
        assert len(inside.unique()) <= 16


@pytest.mark.parametrize("options", [Options(8), Options(4, symmetric=False)])
def test_a_token_with_nan_or_infinity_is_nan_and_others_are_as_they_were(options: Options) -> None:
    x = TOKENS.clone()
    x[0, 4, 0], x[0, 5, 0] = math.nan, math.inf
    found, before = of(options).inputs(x), of(options).inputs(TOKENS)
    assert found[0, 4:6].isnan().all()
    assert torch.equal(found[0, 6:], before[0, 6:])


def test_what_is_stored_makes_the_same_rounding_again() -> None:
    for options in GRIDS:
        made = of(options)
        held = made.tensors()
        assert held.keys() == (
            {"scale", "zero"} - ({"zero"} if options.symmetric else set())
            if options.per == "tensor"
            else set()
        )
        assert sum(each.nbytes for each in held.values()) <= round_inputs.kept_bytes(33)
        assert torch.equal(round_inputs.rebuild(held, options).inputs(TOKENS), made.inputs(TOKENS))


def test_options_that_cannot_be_are_refused_in_one_sentence() -> None:
    for options, said in (
        ({"bits": 9}, "bits=9 is not between 2 and 8; use 8 or 4"),
        ({"bits": 1}, "bits=1 is not between"),
        ({"per": "channel"}, "per=channel is unknown; use token"),
        ({"clip": 0}, "clip=0 is no share of the range above 0"),
        ({"clip": 1.5}, "clip=1.5 is no share"),
        ({"clip": math.nan}, "clip=nan is no share"),
    ):
        with pytest.raises(ValueError, match=said):
            Options(**options)
    with pytest.raises(QuantizationError, match=r"no calibration token reached a, so .*per=token"):
        rounding(Inputs("a", 4), Options(per="tensor"))


def test_names_say_the_grid() -> None:
    assert round_inputs.tag(Options()) == "a8"
    assert round_inputs.tag(Options(4, "tensor", symmetric=False)) == "a4_tensor_asym"
    assert round_inputs.describe(Options()) == []
    assert round_inputs.describe(Options(clip=0.9)) == ["inputs clipped at 0.9"]
