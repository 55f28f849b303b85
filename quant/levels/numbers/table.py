"""Levels that are a table times the largest magnitude of a block of columns.

Codes are ranks: tables ascend, so that the nearest level is found between midpoints, and so that
the outermost codes are the outermost levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quant.levels.base import GridTensor, Levels, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

Table = Sequence[float]


def levels(name: str, prefix: str, about: str, table: Table) -> Levels:
    """Return the levels of a table of 16, ascending; the words are those of `Levels`."""
    return Levels(
        name=name,
        prefix=prefix,
        about=about,
        tensors=(GridTensor("scale", "scales"),),
        find=find,
        encode=lambda values, grid, _: encode(values, grid, table),
        decode=lambda codes, grid, _: decode(codes, grid, table),
        bits=(4,),
        draw=lambda _, shape, inputs, scheme, generator: draw(
            shape, inputs, scheme, generator, table
        ),
    )


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Return the largest magnitude of every row; 0 for a row of zeros."""
    from quant.scales import round_scale

    return {"scale": round_scale(weight.abs().amax(dim=1), scheme, layer, may_be_zero=True)}


def encode(values: Tensor, grid: Tensors, table: Table) -> Tensor:
    """Return the codes of the nearest levels; a value halfway between two gets the lower one."""
    return between(values, grid["scale"], middles(table, values))


def middles(table: Table, like: Tensor) -> Tensor:
    """Return the numbers halfway between the levels of a table, in the dtype of `like`."""
    import torch

    levels = in_float32(table).to(like)
    found = (levels[1:] + levels[:-1]) / 2
    # Of a positive and a negative zero the positive one stands for 0, as in bitsandbytes.
    found[found == 0] = -torch.finfo(found.dtype).tiny
    return found


def between(values: Tensor, scale: Tensor, ends: Tensor) -> Tensor:
    """Return the codes of values on scales: how many of `ends` lie below a value."""
    import torch

    unit = values / torch.where(scale == 0, 1.0, scale)
    return torch.bucketize(unit.contiguous(), ends).to(values.dtype)


def decode(codes: Tensor, grid: Tensors, table: Table) -> Tensor:
    """Return the values: table entry times scale, rounded once."""
    levels = in_float32(table).to(codes).index_select(0, codes.flatten().int())
    return levels.view(codes.shape).mul_(grid["scale"])


def draw(
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
    table: Table,
) -> dict[str, Tensor]:
    """Draw scales for codes that are all equally frequent."""
    from quant.scales import draw_scale

    spread = float(in_float32(table).square().mean().sqrt())
    return {"scale": draw_scale(shape, spread, inputs, scheme, generator)}


def in_float32(table: Table) -> Tensor:
    """Return the table as bitsandbytes holds it."""
    import torch

    return torch.tensor(table, dtype=torch.float32)
