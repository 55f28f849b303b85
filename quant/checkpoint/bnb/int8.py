"""LLM.int8 (arXiv 2208.07339) as bitsandbytes stores weights: -127 to 127, largest magnitude / 127.

The values are (code - 128) * scale * (1 / 127), rounded to float32 after each product, as
bitsandbytes computes them. Uniform levels would have the scale / 127, which float32 rounds first:
their products differ from these in the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.levels.base import GridTensor, Levels, Tensors
from quant.levels.numbers import table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

MIDDLE = 128  # the code of 0
LARGEST = 127
ONE_BY_LARGEST = 7.874015718698502e-3  # 1 / 127 in float32


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    """Return the nearest codes (ties to even)."""
    import torch

    scale = grid["scale"]
    factor = LARGEST / torch.where(scale == 0, 1.0, scale)
    return (values * factor).round_().clamp_(-LARGEST, LARGEST).add_(MIDDLE)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return (codes - MIDDLE).mul_(grid["scale"]).mul_(ONE_BY_LARGEST)


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw scales for uniformly distributed codes."""
    import math

    from quant.scales import draw_scale

    return {"scale": draw_scale(shape, 1 / math.sqrt(3), inputs, scheme, generator)}


LEVELS = Levels(
    name="bnb_int8",
    prefix="bnbint8",
    about="LLM.int8 levels are -127 to 127, times the largest magnitude of a row / 127",
    tensors=(GridTensor("scale", "scales"),),
    find=table.find,
    encode=encode,
    decode=decode,
    bits=(8,),
    draw=draw,
)
