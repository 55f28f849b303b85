"""Scales of a grid: as a scheme's scale_dtype holds them, and drawn at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quant.errors import NonFiniteError, QuantizationError
from quant.scheme import Scheme

# float16 keeps scales below its smallest normal number as multiples of this step.
FLOAT16_STEP = 2.0**-24


def round_scale(
    scale: Tensor, scheme: Scheme, layer: str = "this layer", *, may_be_zero: bool = False
) -> Tensor:
    """scale as scheme.scale_dtype holds it, refusing what it cannot hold.

    Below the smallest normal number of float16 (rows with tiny weights at 8 bits get there) the
    rounding is relative no more: nearest could cut off a third of the range or give 0. There the
    next multiple of 2^-24 above is taken, so the grid always covers the row. A scale is never 0
    unless it may be (an outer level of a ternary grid).

    Raises NonFiniteError for scales that are not finite and QuantizationError for those beyond
    scheme.scale_dtype.
    """
    stored = getattr(torch, scheme.scale_dtype)
    single = scale.float()  # so that float64 takes the same road: torch goes over float32 anyway
    rounded = single.to(stored).float()
    if not torch.isfinite(rounded).all():
        _refuse(scale, rounded, scheme, layer)
    smallest = torch.finfo(stored).tiny
    if scheme.scale_dtype == "float16":
        upward = (single / FLOAT16_STEP).ceil_().mul_(FLOAT16_STEP)
        rounded = torch.where(single < smallest, upward, rounded)
        smallest = FLOAT16_STEP
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


def _refuse(scale: Tensor, rounded: Tensor, scheme: Scheme, layer: str) -> None:
    layer = layer or "this layer"
    row = int((~torch.isfinite(rounded)).nonzero()[0, 0])
    value = float(scale[row])
    if value != value or value == float("inf"):
        raise NonFiniteError(
            f"{layer}: the weights of grid row {row} are NaN, infinite or span more than float32 "
            "holds; look for non-finite values in the checkpoint and in the calibration data."
        )
    raise QuantizationError(
        f"{layer}: the scale of grid row {row} is {value:.4g}, more than {scheme.scale_dtype} "
        "holds; use scale_dtype=bfloat16 or float32."
    )
