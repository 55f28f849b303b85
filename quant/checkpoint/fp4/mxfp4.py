"""MXFP4 of the OCP Microscaling Formats specification 1.0: E2M1 in groups of 32, scales in E8M0.

A scale is a power of two, stored as its exponent + 127 in a byte; 255 is NaN. The values are
level * 2^(exponent - 127), which float32 and bfloat16 hold exactly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.checkpoint.fp4 import e2m1
from quant.errors import SchemeError
from quant.levels.base import GridTensor, Levels, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

GROUP = 32
BIAS = 127
NAN = 255
LARGEST = 252  # the largest exponent whose level 6 is finite in float32
TOP = 2  # exponent of the largest level, 6 = 1.5 * 2^2


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:  # noqa: ARG001
    """Return the exponents of the specification (section 6.3): floor(log2(largest)) - 2.

    Levels reach 6 * 2^exponent, so that a largest magnitude of up to 8 * 2^exponent is clipped.
    """
    import torch

    largest = weight.abs().amax(dim=1)
    floor = torch.frexp(largest).exponent - 1
    stored = (floor - TOP + BIAS).clamp(0, LARGEST)
    return {"exponent": torch.where(largest == 0, 0, stored).to(weight.dtype)}


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return e2m1.encode(values, scale(grid["exponent"]))


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return e2m1.decode(codes, scale(grid["exponent"]))


def scale(exponent: Tensor) -> Tensor:
    """Return 2^(exponent - 127) in the dtype of the exponents, which are whole numbers.

    From a table: a power that a processor computes may be off in its last bit.
    """
    import torch

    powers = torch.tensor([2.0 ** (each - BIAS) for each in range(NAN)], dtype=torch.float32)
    found = powers.to(exponent).index_select(0, exponent.flatten().int())
    return found.view(exponent.shape)


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
    return {"exponent": (upper.to(torch.uint8) + (low + BIAS)).to(torch.uint8)}


def check(scheme: Scheme) -> None:
    if scheme.group_size != GROUP:
        raise SchemeError(
            f"mxfp4 levels have a scale for every {GROUP} weights: use group_size={GROUP}."
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
    check=check,
    draw=draw,
)
