"""NVFP4 of NVIDIA: E2M1 in groups of 16, scales in E4M3 and one float32 number for a whole tensor.

The values are level * (scale / global_scale), as in the files of compressed-tensors: the global
scale enlarges the scales of a tensor to the range of E4M3. It is stored once there and once a row
in Bitsweep's own buffers; bits per weight count what is stored.

Scales of a row are found together with the global one, before a solver changes any weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.errors import SchemeError
from quant.levels.base import GridTensor, Levels, Tensors
from quant.levels.numbers import e2m1

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

GROUP = 16
LARGEST_SCALE = 448.0  # of E4M3


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Return scales that make the largest magnitude of a group 6, and of all of them 6 * 448."""
    import torch

    from quant.scales import round_scale

    groups = weight.split(scheme.group_size or weight.shape[1], dim=1)
    largest = torch.stack([each.abs().amax(dim=1) for each in groups], dim=1)
    single = torch.finfo(torch.float32)
    # The smallest number keeps the quotient finite, and defined for weights that are all 0.
    most = largest.amax().float().clamp(min=e2m1.LARGEST * LARGEST_SCALE / single.max)
    whole = (e2m1.LARGEST * LARGEST_SCALE / most).clamp(max=single.max).to(weight.dtype)
    scale = (largest / e2m1.LARGEST * whole).clamp(max=LARGEST_SCALE)
    stored = round_scale(scale, scheme, layer, may_be_zero=True, dtype="float8_e4m3fn")
    return {"scale": stored, "global_scale": whole.expand(len(weight), 1)}


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return e2m1.encode(values, grid["scale"] / grid["global_scale"])


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return e2m1.decode(codes, grid["scale"] / grid["global_scale"])


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,  # noqa: ARG001
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw scales for codes that are all equally frequent."""
    import torch

    middle = LARGEST_SCALE / 2
    unit = torch.rand(shape, device=generator.device, generator=generator) * 0.5 + 0.75
    whole = middle * e2m1.spread() * math.sqrt(inputs)
    return {
        "scale": (unit * middle).to(torch.float8_e4m3fn),
        "global_scale": torch.full(shape, whole, device=generator.device),
    }


def check(scheme: Scheme) -> None:
    if scheme.group_size != GROUP:
        raise SchemeError(
            f"nvfp4 levels have a scale for every {GROUP} weights: use group_size={GROUP}."
        )


LEVELS = Levels(
    name="nvfp4",
    prefix="nvfp4",
    about="NVFP4 levels are the 15 values of E2M1, times an E4M3 scale and one of the whole tensor",
    tensors=(
        GridTensor("scale", "scales", dtype="float8_e4m3fn"),
        GridTensor("global_scale", "global_scales", dtype="float32", span=None),
    ),
    find=find,
    encode=encode,
    decode=decode,
    bits=(4,),
    check=check,
    alike=e2m1.ZEROS,
    draw=draw,
)
