"""Random layers whose inputs are correlated, for solvers that fit weights to them."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_of(
    outputs: int, inputs: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """A weight with some low rank in it, and H of inputs with a condition of about a thousand."""
    draw = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw, dtype=torch.float64)

    falling = torch.logspace(0, -1.5, inputs, dtype=torch.float64)
    x = normal(8 * inputs, inputs) @ (normal(inputs, inputs) * falling)
    few = min(outputs, inputs) // 3
    weight = normal(outputs, few) @ normal(few, inputs) / few**0.5 + 0.5 * normal(outputs, inputs)
    return weight.to(dtype), (2 * x.T @ x / 8).to(dtype)
