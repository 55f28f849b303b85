"""Scales of a grid: as a scheme's scale_dtype holds them, and drawn at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quant.errors import NonFiniteError, QuantizationError
from quant.scheme import SCALE_DTYPES, Scheme

# What these types keep below their smallest normal number: multiples of a step.
STEPS = {"float16": 2.0**-24, "float8_e4m3fn": 2.0**-9, "float8_e5m2": 2.0**-16}


def round_scale(
    scale: Tensor,
    scheme: Scheme,
    layer: str = "this layer",
    *,
    may_be_zero: bool = False,
    dtype: str | None = None,
) -> Tensor:
    """scale as `dtype` (None: scheme.scale_dtype) holds it, refusing what it cannot hold.

    Below the smallest normal number of float16 (rows with tiny weights at 8 bits get there) the
    rounding is relative no more: nearest could cut off a third of the range or give 0. There the
    next multiple of 2^-24 above is taken, so the grid always covers the row; with 8-bit types
    alike. A scale is never 0 unless it may be (an outer level of a ternary grid).

    Raises NonFiniteError for scales that are not finite and QuantizationError for those beyond
    the type.
    """
    name = dtype or scheme.scale_dtype
    stored = getattr(torch, name)
    single = scale.float()  # so that float64 takes the same road: torch goes over float32 anyway
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
    """Random scales for codes of standard deviation `spread`, in scheme.scale_dtype.

    Their products with the codes have a variance of about 1 / inputs.
    """
    unit = torch.rand(shape, device=generator.device, generator=generator) * 0.5 + 0.75
    return (unit / (spread * math.sqrt(inputs))).to(getattr(torch, scheme.scale_dtype))


def _refuse(scale: Tensor, rounded: Tensor, dtype: str, layer: str) -> None:
    layer = layer or "this layer"
    place = (~torch.isfinite(rounded)).nonzero()[0]
    row, value = int(place[0]), float(scale[tuple(place)])
    if value != value or value == float("inf"):
        raise NonFiniteError(
            f"{layer}: the weights of grid row {row} are NaN, infinite or span more than float32 "
            "holds; look for non-finite values in the checkpoint and in the calibration data."
        )
    way_out = (
        "use scale_dtype=bfloat16 or float32"
        if dtype in SCALE_DTYPES
        else "let the levels' find make it smaller"
    )
    raise QuantizationError(
        f"{layer}: the scale of grid row {row} is {value:.4g}, more than {dtype} holds; {way_out}."
    )
