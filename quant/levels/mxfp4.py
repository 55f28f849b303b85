"""MXFP4 of the OCP Microscaling Formats specification 1.0: E2M1 in groups of 32, scales in E8M0.

A scale is a power of two, stored as its exponent + 127 in a byte; 255 is NaN. The values are
level * 2^(exponent - 127), which float32 and bfloat16 hold exactly.

The format does not say how the exponent of a group is found, and libraries round it by three rules,
which are the grids of these levels. With 2^k <= m < 2^(k+1), m the largest magnitude of the group,

    floor  k - 2                               the specification, section 6.3; gguf, torchao
    even   k - 2, and one more from 1.75 2^k   compressed-tensors: where 6 would stand for more
           on                                  than 7 steps
    rceil  k - 2, and one more above 1.5 2^k   mlx, modelopt: nothing is clipped

(The words are torchao's.) Files do not tell the rule: the grid of a checkpoint that was read is
"minmax", to which no weight is quantized.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.errors import SchemeError
from quant.levels.base import GridTensor, Levels, Tensors
from quant.levels.numbers import e2m1, e8m0

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

GROUP = 32
LARGEST = 252  # the largest exponent whose level 6 is finite in float32
TOP = 2  # exponent of the largest level, 6 = 1.5 * 2^2
NOT_STATED = "minmax"
# The share of 2^(k+1), which frexp returns, from which on the exponent is one more.
UPWARD = {"even": 1.75 / 2, "rceil": 1.5 / 2}


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:  # noqa: ARG001
    """Return the exponents of the scheme's rule; 0 for groups of zeros."""
    import torch

    largest = weight.abs().amax(dim=1)
    share, exponent = torch.frexp(largest)
    if scheme.grid == "even":
        exponent = exponent + (share >= UPWARD["even"])
    elif scheme.grid == "rceil":
        exponent = exponent + (share > UPWARD["rceil"])
    stored = (exponent - 1 - TOP + e8m0.BIAS).clamp(0, LARGEST)
    return {"exponent": torch.where(largest == 0, 0, stored).to(weight.dtype)}


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return e2m1.encode(values, e8m0.scale(grid["exponent"]))


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return e2m1.decode(codes, e8m0.scale(grid["exponent"]))


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,  # noqa: ARG001
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw exponents for codes that are all equally frequent: the two next to the exact one."""
    import torch

    exact = -math.log2(e2m1.spread() * math.sqrt(inputs))
    low = math.floor(exact)
    share = (4.0 ** (exact - low) - 1) / 3  # of the upper one, so that variances have this mean
    upper = torch.rand(shape, device=generator.device, generator=generator) < share
    return {"exponent": (upper.to(torch.uint8) + (low + e8m0.BIAS)).to(torch.uint8)}


def check(scheme: Scheme) -> None:
    if scheme.group_size != GROUP:
        rule = " and grid=floor, even or rceil" if scheme.grid == NOT_STATED else ""
        raise SchemeError(
            f"mxfp4 levels have a scale for every {GROUP} weights: use group_size={GROUP}{rule}."
        )


def refuses(scheme: Scheme, inputs: int) -> str | None:  # noqa: ARG001
    if scheme.grid != NOT_STATED:
        return None
    return (
        "does not say how exponents of groups are rounded: use grid=floor (the rule of the "
        "specification), even or rceil"
    )


LEVELS = Levels(
    name="mxfp4",
    prefix="mxfp4",
    about="MXFP4 levels are the 15 values of E2M1, times a power of two",
    tensors=(GridTensor("exponent", "exponents", code=True, width=8),),
    find=find,
    encode=encode,
    decode=decode,
    bits=(4,),
    grids=(NOT_STATED, "floor", "even", "rceil"),
    check=check,
    refuses=refuses,
    alike=e2m1.ZEROS,
    draw=draw,
)
