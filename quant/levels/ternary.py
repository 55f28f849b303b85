"""Ternary levels {minimum, 0, maximum} as in the appendix of the paper; the grid is not uniform.

Code 0 means -negative_scale, 1 means 0 and 2 means scale; codes are stored in 2 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.levels.base import GridTensor, Levels, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Return minimum and maximum of every row; either may be 0."""
    from quant.scales import round_scale

    low = weight.amin(dim=1).clamp_(max=0)
    high = weight.amax(dim=1).clamp_(min=0)
    negative = round_scale(-low, scheme, layer, may_be_zero=True)
    return {
        "scale": round_scale(high, scheme, layer, may_be_zero=True),
        "negative_scale": negative,
    }


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    """Round values beyond half of an outer level to that level, and others to 0."""
    above = (values > grid["scale"] / 2).to(values.dtype)
    return above.sub_((values < grid["negative_scale"] / -2).to(values.dtype)).add_(1)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    """Return the values; exact, because one of the two products is always 0."""
    level = codes - 1
    return level.clamp(min=0) * grid["scale"] + level.clamp(max=0) * grid["negative_scale"]


def loop_arguments(grid: Tensors) -> dict[str, Tensor]:
    """Return the arguments of the compiled column loop."""
    return {"scale": grid["scale"], "negative": grid["negative_scale"]}


def draw(
    words: Tensor,
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw outer levels of about equal size."""
    import math

    from quant.scales import draw_scale

    words ^= words & (words >> 1) & 0x55555555  # code 3 is invalid and becomes 2
    spread = math.sqrt(0.75)  # standard deviation of the levels -1, 0, 1, 1
    return {
        "scale": draw_scale(shape, spread, inputs, scheme, generator),
        "negative_scale": draw_scale(shape, spread, inputs, scheme, generator),
    }


LEVELS = Levels(
    name="ternary",
    prefix="ternary",
    about="ternary levels are {minimum, 0, maximum} stored in 2 bits",
    tensors=(GridTensor("scale", "scales"), GridTensor("negative_scale", "scales_negative")),
    find=find,
    encode=encode,
    decode=decode,
    bits=(2,),
    codes=3,
    loop_arguments=loop_arguments,
    operators=True,
    draw=draw,
)
