"""Uniform levels: scale * (code - zero).

The paper's quantizer (arXiv 2210.17323, section 4 "Setup", and the authors' code) is the asymmetric
min-max grid; symmetric and searched grids (quant.grid_search) are supported too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.levels.base import SEARCHES, GridTensor, Levels, Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme

# Shares of the full range that a search tries besides 1: 0.98, 0.96, ... 0.22. The smallest is
# below the best clipping of 2-bit codes on a row of 16384 Gaussian weights (0.37).
SHARES = tuple((50 - step) / 50 for step in range(1, 40))


def find(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Find the grid of every row from its range, extended to contain 0, so that 0 is exact.

    A row of zeros gets the range [-1, 1]. Symmetric grids span [-max|w|, max|w|] with the
    zero-point at 2^(bits-1). Scales are rounded to scheme.scale_dtype first, and zero-points are
    computed from the rounded scale.
    """
    return _grid(*_range(weight, scheme), scheme, layer)


def candidates(weight: Tensor, scheme: Scheme, layer: str) -> Tensors:
    """Return the grids [candidates, rows] of SHARES of the range: both ends shrink together.

    As in the authors' code, whose mse search has the exponent 2.4 in the place of the square.
    """
    low, high = _range(weight, scheme)
    shares = weight.new_tensor(SHARES)[:, None]
    return _grid(low * shares, high * shares, scheme, layer)


def encode(values: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:
    """Return the nearest codes (ties to even)."""
    return (values / grid["scale"]).round_().add_(grid["zero"]).clamp_(0, scheme.max_code)


def decode(codes: Tensor, grid: Tensors, scheme: Scheme) -> Tensor:  # noqa: ARG001
    """Return the values: the difference is exact, the product is rounded once."""
    return (codes - grid["zero"]).mul_(grid["scale"])


def loop_arguments(grid: Tensors) -> dict[str, Tensor]:
    """Return the arguments of the compiled column loop."""
    return {"scale": grid["scale"], "zero": grid["zero"]}


def draw(
    words: Tensor,  # noqa: ARG001
    shape: tuple[int, ...],
    inputs: int,
    scheme: Scheme,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw zero-points next to the middle code, and scales for uniformly distributed codes."""
    import math

    import torch

    from quant.scales import draw_scale

    levels = 2**scheme.bits
    middle = levels // 2 - 1
    # The mean of the codes lies halfway between the two middle codes.
    zero = torch.randint(
        0, 2, shape, dtype=torch.uint8, device=generator.device, generator=generator
    )
    zero = torch.full_like(zero, middle + 1) if scheme.symmetric else zero + middle
    spread = math.sqrt((levels**2 - 1) / 12)
    return {"scale": draw_scale(shape, spread, inputs, scheme, generator), "zero": zero}


def _range(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    import torch

    low = weight.amin(dim=1).clamp_(max=0)
    high = weight.amax(dim=1).clamp_(min=0)
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    empty = high == low
    return torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)


def _grid(low: Tensor, high: Tensor, scheme: Scheme, layer: str) -> Tensors:
    import torch

    from quant.scales import round_scale

    scale = round_scale((high - low) / scheme.max_code, scheme, layer)
    if scheme.symmetric:
        return {"scale": scale, "zero": torch.full_like(scale, 2 ** (scheme.bits - 1))}
    return {"scale": scale, "zero": (-low / scale).round_().clamp_(0, scheme.max_code)}


LEVELS = Levels(
    name="uniform",
    prefix="w",
    about="uniform levels are equal steps",
    tensors=(GridTensor("scale", "scales"), GridTensor("zero", "qzeros", code=True)),
    find=find,
    encode=encode,
    decode=decode,
    symmetric=True,
    grids=("minmax", *SEARCHES),
    candidates=candidates,
    loop_arguments=loop_arguments,
    operators=True,
    draw=draw,
)
