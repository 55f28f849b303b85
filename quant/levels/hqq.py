"""Levels of HQQ (mobiusml.github.io/hqq_blog): (code - zero) * scale with a fractional zero-point.

HQQ computes in the type of the scales and rounds to it after the difference and after the product,
so these levels do too: in float16 and bfloat16 they are not exactly evenly spaced.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.levels.base import GridTensor, Levels, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from quant.scheme import Scheme

# The two roundings move a level by one step at most (8 bits in bfloat16), so that the nearest is
# among the code that exact arithmetic gives and two on either side.
NEIGHBOURS = (-1, 1, -2, 2)


def levels(
    name: str,
    prefix: str,
    about: str,
    bits: tuple[int, ...] | None = None,
    codes: int | None = None,
    draw: Callable[..., dict[str, Tensor]] | None = None,
) -> Levels:
    """Return levels of this kind; the words are those of `Levels`."""
    return Levels(
        name=name,
        prefix=prefix,
        about=about,
        tensors=(GridTensor("scale", "scales"), GridTensor("zero", "zeros")),
        find=find,
        encode=encode,
        decode=decode,
        bits=bits,
        codes=codes,
        draw=draw,
    )


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Find the grid of every row from its range, extended to contain 0.

    HQQ starts from the range alone and then moves zero-points, which its solver does here
    (quant.solvers.hqq).
    """
    import torch

    from quant.scales import round_scale

    low = weight.amin(dim=1).clamp_(max=0)
    high = weight.amax(dim=1).clamp_(min=0)
    step = torch.where(high == low, 1.0, (high - low) / scheme.max_code)
    scale = round_scale(step, scheme, layer)
    return {"scale": scale, "zero": _rounded(-low / scale, scheme)}


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:
    """Return the codes of the nearest levels; of two as near that of exact arithmetic."""
    import torch

    def at(codes: Tensor) -> Tensor:
        return (decode(codes, grid, scheme) - values).abs_()

    start = (values / grid["scale"]).add_(grid["zero"]).round_().clamp_(0, scheme.max_code)
    best, error = start, at(start)
    for step in NEIGHBOURS:
        other = (start + step).clamp_(0, scheme.max_code)
        distance = at(other)
        nearer = distance < error
        best, error = torch.where(nearer, other, best), torch.where(nearer, distance, error)
    return best


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:
    """Return the values: difference and product, each rounded to scheme.scale_dtype."""
    return _rounded(_rounded(codes - grid["zero"], scheme) * grid["scale"], scheme)


def _rounded(values: Tensor, scheme: Scheme) -> Tensor:
    import torch

    return values.to(getattr(torch, scheme.scale_dtype)).to(values.dtype)


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw scales for uniformly distributed codes; zero-points are the middle of the codes."""
    import torch

    from quant.scales import draw_scale

    spread = math.sqrt((4**scheme.bits - 1) / 12)
    scale = draw_scale(shape, spread, inputs, scheme, generator)
    return {"scale": scale, "zero": torch.full_like(scale, scheme.max_code / 2)}


LEVELS = levels(
    "hqq", "hqq", "HQQ levels are (code - zero) * scale with a fractional zero-point", draw=draw
)
