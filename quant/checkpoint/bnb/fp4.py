"""FP4 of bitsandbytes: sign, two bits of exponent and one of mantissa, by a table of its own.

It is no other FP4: the magnitudes are 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3 and 1, and not in the order
of the bits. E2M1 of NVFP4 and MXFP4 has 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.checkpoint.bnb import table
from quant.levels.base import GridTensor, Levels, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

_MAGNITUDES = (0.0, 0.0625 / 12, 2 / 12, 3 / 12, 4 / 12, 6 / 12, 8 / 12, 1.0)
TABLE = (*(-each for each in reversed(_MAGNITUDES)), *_MAGNITUDES)
# Rank of every code in the files; code 8 is the negative zero.
RANKS = (8, 9, 14, 15, 12, 13, 10, 11, 7, 6, 1, 0, 3, 2, 5, 4)


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return table.encode(values, grid, TABLE)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return table.decode(codes, grid, TABLE)


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    return table.draw(shape, inputs, scheme, generator, TABLE)


LEVELS = Levels(
    name="bnb_fp4",
    prefix="bnbfp4",
    about="bitsandbytes' FP4 levels are 8 magnitudes with a sign, times a group's maximum",
    tensors=(GridTensor("scale", "scales"),),
    find=table.find,
    encode=encode,
    decode=decode,
    bits=(4,),
    draw=draw,
)
