"""Levels of GGUF's types that are no levels of ours; as they are read, never searched by llama.cpp.

Scales are the products that the types store in parts (a float16 number of a block times a small one
of a group), in float32, which holds them exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.levels.base import GridTensor, Levels, Tensors
from quant.levels.numbers import e2m1, table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

# The 16 levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl` of ggml), ascending.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Find the grid of every row from its range; llama.cpp searches for a better one."""
    import torch

    from quant.scales import round_scale

    low, high = weight.amin(dim=1), weight.amax(dim=1)
    step = torch.where(high == low, 1.0, (high - low) / scheme.max_code)
    scale = round_scale(step, scheme, layer)
    return {"scale": scale, "offset": low.to(getattr(torch, scheme.scale_dtype)).to(weight.dtype)}


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:
    """Return the nearest codes (ties to even); 0 where all levels are one."""
    import torch

    scale = grid["scale"]
    steps = (values - grid["offset"]) / torch.where(scale == 0, 1.0, scale)
    codes = steps.round_().clamp_(0, scheme.max_code)
    return codes.mul_(scale != 0)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    """Return the values: product and sum, each rounded, as the package `gguf` computes them."""
    import torch

    return torch.mul(codes, grid["scale"]).add_(grid["offset"])


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw scales for uniformly distributed codes, and offsets that make their mean 0."""
    from quant.scales import draw_scale

    scale = draw_scale(shape, math.sqrt((4**scheme.bits - 1) / 12), inputs, scheme, generator)
    return {"scale": scale, "offset": -scale * scheme.max_code / 2}


AFFINE = Levels(
    name="gguf",
    prefix="gguf",
    about="levels of GGUF's types with a minimum are code * scale + offset",
    tensors=(GridTensor("scale", "scales"), GridTensor("offset", "offsets")),
    find=find,
    encode=encode,
    decode=decode,
    draw=draw,
)
IQ4 = table.levels(
    "gguf_iq4", "iq4", "IQ4 levels are a table of 16 numbers, times a scale", IQ4_VALUES
)
FP4 = table.levels("gguf_fp4", "gguffp4", "FP4 levels of GGUF are E2M1, times a scale", e2m1.TABLE)
