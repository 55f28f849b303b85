"""Round the scales of a grid to a scheme's scale_dtype, and draw random scales."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quant.errors import NonFiniteError, QuantizationError
from quant.scheme import SCALE_DTYPES, Scheme

# Spacing of the subnormal numbers of these types.
STEPS = {"float16": 2.0**-24, "float8_e4m3fn": 2.0**-9, "float8_e5m2": 2.0**-16}


def round_scale(
    scale: Tensor,
    scheme: Scheme,
    layer: str = "this layer",
    *,
    may_be_zero: bool = False,
    dtype: str | None = None,
) -> Tensor:
    """Round scale to `dtype` (None: scheme.scale_dtype).

    Below the smallest normal number of float16 (8-bit grids of rows with tiny weights reach it) the
    spacing is constant, so rounding to nearest could cut off a third of the range or give 0. There,
    and for the 8-bit float types, the scale is rounded up to the next multiple of the step (2^-24
    for float16), so that the grid always covers the row. A scale is never 0 unless may_be_zero is
    set (an outer level of a ternary grid).

    Raises NonFiniteError for scales that are not finite and QuantizationError for scales that
    exceed the type.
    """
    name = dtype or scheme.scale_dtype
    stored = getattr(torch, name)
    single = scale.float()  # torch casts float64 to float16 through float32 anyway
    rounded = single.to(stored).float()
    if not torch.isfinite(rounded).all():
        _refuse(scale, rounded, name, layer)
    smallest = torch.finfo(stored).tiny
    if name in STEPS:
        upward = (single / STEPS[name]).ceil_().mul_(STEPS[name])
        rounded = torch.where(single < smallest, upward, rounded)
        smallest = STEPS[name]
    return (rounded if may_be_zero else rounded.clamp_(min=smallest)).to(scale.dtype)


def draw_scale(
    shape: tuple[int, ...],
    spread: float,
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> Tensor:
    """Draw random scales of `shape` in scheme.scale_dtype for codes of standard deviation `spread`.

    The products of scales and codes have a variance of about 1 / inputs.
    """
    unit = torch.rand(shape, device=generator.device, generator=generator) * 0.5 + 0.75
    return (unit / (spread * math.sqrt(inputs))).to(getattr(torch, scheme.scale_dtype))


def _refuse(scale: Tensor, rounded: Tensor, dtype: str, layer: str) -> None:
    layer = layer or "this layer"
    place = (~torch.isfinite(rounded)).nonzero()[0]
    row, value = int(place[0]), float(scale[tuple(place)])
    if value != value or value == float("inf"):
        raise NonFiniteError(
            f"{layer}: the weights of grid row {row} are NaN, infinite or exceed the range of "
            "float32; look for non-finite values in the checkpoint and in the calibration data."
        )
    way_out = (
        "use scale_dtype=bfloat16 or float32"
        if dtype in SCALE_DTYPES
        else "let the levels' find make it smaller"
    )
    raise QuantizationError(
        f"{layer}: the scale of grid row {row} is {value:.4g}, beyond {dtype}'s range; {way_out}."
    )
