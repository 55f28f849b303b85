"""HQQ's levels of 2 to 8 bits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quant.checkpoint.hqq import levels

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from quant.scheme import Scheme


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


LEVELS = levels.levels(
    "hqq", "hqq", "HQQ levels are (code - zero) * scale with a fractional zero-point", draw=draw
)
