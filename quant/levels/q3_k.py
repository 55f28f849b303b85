"""Q3_K of llama.cpp: 3 bits in groups of 16, whose scales have six bits and a sign; no minima.

The values are step * (scale - 32) * (code - 4), one float16 step a super-block of 256 weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.levels.base import GridTensor, Levels, Tensors
from quant.levels.numbers import super_blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

GROUP = 16
MIDDLE = 4  # the code of 0
OFFSET = 32  # of the stored numbers of scales


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Return the numbers of super-blocks [rows, 256] from the largest magnitudes of their groups.

    A scale has the sign that puts the weight of the largest magnitude on code 0, four steps from
    the middle (the other side has three); the largest scale of a super-block is the number -32.
    """
    import torch

    from quant.scales import round_scale

    def largest(numbers: Tensor) -> Tensor:
        return numbers.gather(-1, numbers.abs().argmax(-1, keepdim=True))

    exact = largest(weight.unflatten(1, (-1, GROUP))).squeeze(2) / -MIDDLE
    most = largest(exact)
    size = round_scale(most.abs() / OFFSET, scheme, layer, dtype="float16")
    step = torch.where(most > 0, -size, size)
    number = (exact / step).round_().clamp_(-OFFSET, OFFSET - 1)
    # Never 0: such a group has one level, and with the smallest scale it has more.
    return {"scale": torch.where(number == 0, 1.0, number) + OFFSET, "step": step}


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:
    """Return the nearest codes (ties to even)."""
    return (values / scale_of(grid)).round_().add_(MIDDLE).clamp_(0, scheme.max_code)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    return (codes - MIDDLE).mul_(scale_of(grid))


def scale_of(grid: Tensors) -> Tensor:
    return grid["step"] * (grid["scale"] - OFFSET)


def loop_arguments(grid: Tensors) -> dict[str, Tensor]:
    """Return the arguments of the compiled column loop: these levels are evenly spaced."""
    import torch

    scale = scale_of(grid)
    return {"scale": scale, "zero": torch.full_like(scale, MIDDLE)}


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,  # noqa: ARG001
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw scales for uniformly distributed codes."""
    import torch

    number = super_blocks.random_numbers(shape, OFFSET - 1, generator)
    spread = math.sqrt(5.5) * super_blocks.root_mean_square(OFFSET - 1)  # codes -4 to 3
    step = torch.full(shape, 1 / (spread * math.sqrt(inputs)), device=generator.device)
    return {"scale": number + OFFSET, "step": step.half()}


LEVELS = Levels(
    name="q3_k",
    prefix="q3k",
    about="q3_k levels have super-blocks of 16 groups with a scale",
    tensors=(
        GridTensor("scale", "scale_codes", code=True, width=6),
        GridTensor("step", "steps", dtype="float16", span=super_blocks.SIZE // GROUP),
    ),
    find=find,
    encode=encode,
    decode=decode,
    bits=(3,),
    check=super_blocks.check,
    refuses=super_blocks.refuses,
    loop_arguments=loop_arguments,
    draw=draw,
)
