"""Int4 of torchao in the plain packing: (code - 8) * scale + offset.

The offset is a weight, the middle of a group's range, and no code. The kernels for it run on GPUs
and round in their own ways; here product and sum are each rounded to float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.levels.base import GridTensor, Levels, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

MIDDLE = 8  # the code of the offset


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Find the grid of every row from its range."""
    import torch

    from quant.scales import round_scale

    low, high = weight.amin(dim=1), weight.amax(dim=1)
    step = torch.where(high == low, 1.0, (high - low) / scheme.max_code)
    scale = round_scale(step, scheme, layer)
    offset = (low + MIDDLE * scale).to(getattr(torch, scheme.scale_dtype)).to(weight.dtype)
    return {"scale": scale, "offset": offset}


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:
    """Return the nearest codes (ties to even)."""
    steps = (values - grid["offset"]) / grid["scale"]
    return steps.round_().add_(MIDDLE).clamp_(0, scheme.max_code)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return (codes - MIDDLE).mul_(grid["scale"]).add_(grid["offset"])


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw scales for uniformly distributed codes, and offsets that make their mean 0."""
    from quant.scales import draw_scale

    scale = draw_scale(shape, math.sqrt(255 / 12), inputs, scheme, generator)
    return {"scale": scale, "offset": scale / 2}


LEVELS = Levels(
    name="torchao_int4",
    prefix="aoint4",
    about="torchao's int4 levels are (code - 8) * scale + offset",
    tensors=(GridTensor("scale", "scales"), GridTensor("offset", "offsets")),
    find=find,
    encode=encode,
    decode=decode,
    bits=(4,),
    draw=draw,
)
