"""Super-blocks of 256 weights, as k-quants of llama.cpp have them: numbers of groups are codes too.

The weights of a super-block lie in groups, whose scale and minimum are whole numbers of a few bits,
times two float16 steps of the super-block. Layouts and values are those of ggml-quants.c; how the
numbers are found is ours (`find`), and plainer than llama.cpp's search.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.errors import SchemeError
from quant.levels.base import GridTensor, Levels, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

SIZE = 256  # weights of a super-block


def affine(name: str, prefix: str, bits: int, group: int, width: int) -> Levels:
    """Return the levels step * scale * code - minimum_step * minimum, numbers in `width` bits."""
    span = SIZE // group
    return Levels(
        name=name,
        prefix=prefix,
        about=f"{name} levels have super-blocks of {span} groups with a scale and a minimum",
        tensors=(
            GridTensor("scale", "scale_codes", code=True, width=width),
            GridTensor("minimum", "minimum_codes", code=True, width=width),
            GridTensor("step", "steps", dtype="float16", span=span),
            GridTensor("minimum_step", "minimum_steps", dtype="float16", span=span),
        ),
        find=find,
        encode=encode,
        decode=decode,
        bits=(bits,),
        check=check,
        refuses=refuses,
        draw=draw,
    )


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Return the numbers of super-blocks [rows, 256] from the ranges of their groups.

    The range of a group is extended to contain 0; the largest scale and the largest minimum of a
    super-block are as many steps as their numbers can say.
    """
    import torch

    from quant.scales import round_scale

    groups, top = weight.unflatten(1, (-1, group_of(scheme))), _top(scheme)
    low = groups.amin(2).clamp(max=0).neg()
    exact = (groups.amax(2).clamp(min=0) + low) / scheme.max_code
    found = {}
    for name, step, numbers in (("scale", "step", exact), ("minimum", "minimum_step", low)):
        of_block = round_scale(numbers.amax(1, keepdim=True) / top, scheme, layer, dtype="float16")
        found[name] = (numbers / of_block).round_().clamp_(0, top)
        found[step] = of_block
    # A group without a range of its own still has levels apart, which divide.
    found["scale"] = torch.where(exact > 0, found["scale"].clamp(min=1), found["scale"])
    return found


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:
    """Return the nearest codes (ties to even); 0 where all levels are one."""
    import torch

    scale = grid["step"] * grid["scale"]
    codes = (values + grid["minimum_step"] * grid["minimum"]) / torch.where(scale == 0, 1.0, scale)
    return codes.round_().clamp_(0, scheme.max_code).mul_(scale != 0)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    """Return the values: products and difference each rounded, as the package `gguf` does."""
    return grid["step"] * grid["scale"] * codes - grid["minimum_step"] * grid["minimum"]


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw equal numbers for scales and minima, and steps that make the mean of the levels 0."""
    import torch

    top = _top(scheme)
    number = random_numbers(shape, top, generator)
    spread = math.sqrt((4**scheme.bits - 1) / 12) * root_mean_square(top)
    step = torch.full(shape, 1 / (spread * math.sqrt(inputs)), device=generator.device)
    return {
        "scale": number,
        "minimum": number,
        "step": step.half(),
        "minimum_step": (step * scheme.max_code / 2).half(),
    }


def random_numbers(shape: tuple[int, ...], top: int, generator: torch.Generator) -> Tensor:
    """Draw whole numbers of the upper half of 0 .. top, uint8."""
    import torch

    return torch.randint(
        top // 2, top + 1, shape, dtype=torch.uint8, device=generator.device, generator=generator
    )


def root_mean_square(top: int) -> float:
    """Return that of the numbers that `random_numbers` draws."""
    numbers = range(top // 2, top + 1)
    return math.sqrt(sum(each**2 for each in numbers) / len(numbers))


def group_of(scheme: Scheme) -> int:
    """Return the weights of a group: a super-block has as many groups as share a step."""
    span = scheme.kind.span
    assert span is not None
    return SIZE // span


def _top(scheme: Scheme) -> int:
    """Return the largest number of a scale or minimum."""
    return 2 ** scheme.kind.tensors[0].bits(scheme) - 1


def check(scheme: Scheme) -> None:
    group = group_of(scheme)
    if scheme.group_size != group:
        raise SchemeError(
            f"{scheme.kind.name} levels have groups of {group} weights: use group_size={group}."
        )


def refuses(scheme: Scheme, inputs: int) -> str | None:
    if inputs % SIZE == 0:
        return None
    return (
        f"has super-blocks of {SIZE} weights, which do not divide {inputs} inputs: use a scheme of "
        f"groups alone, such as w{scheme.bits}g32"
    )
