"""Collect statistics of a layer's inputs beside its Hessian, for the transforms that read them."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.transforms.base import Statistics


class InputStatistics:
    """Accumulator of mean, mean magnitude, minimum and maximum of `inputs` inputs.

    Sums are float64: float32 sums would depend on the size of the batches.
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu") -> None:
        self._tokens = 0
        self._sum = torch.zeros(inputs, dtype=torch.float64, device=device)
        self._magnitude = torch.zeros_like(self._sum)
        self._low = torch.full_like(self._sum, torch.inf)
        self._high = torch.full_like(self._sum, -torch.inf)

    @torch.no_grad()
    def update(self, inputs: Tensor) -> None:
        """Add finite inputs [..., in] of any float dtype."""
        rows = inputs.detach().reshape(-1, len(self._sum)).to(self._sum.device)
        if not len(rows):
            return
        self._tokens += len(rows)
        self._sum += rows.sum(dim=0, dtype=torch.float64)
        self._magnitude += rows.abs().sum(dim=0, dtype=torch.float64)
        low, high = rows.aminmax(dim=0)
        self._low = torch.minimum(self._low, low.double())
        self._high = torch.maximum(self._high, high.double())

    def result(self) -> Statistics:
        """Return the statistics of all inputs so far, of which there has to be one."""
        return Statistics(
            self._sum / self._tokens, self._magnitude / self._tokens, self._low, self._high
        )
