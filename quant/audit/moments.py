"""Moments of a layer's inputs on the calibration text: the Hessian, its spectrum, its factors."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from quant.audit.coordinates import Coordinates
from quant.hessian import Factor, factorize
from quant.products import product
from quant.tiling import strips


@dataclass(frozen=True)
class Order:
    """An order of GPTQ's columns: natural, or act-order (together: of quant.hessian.descending)."""

    act_order: bool
    together: int = 1

    def __str__(self) -> str:
        if not self.act_order:
            return ""
        return "act-order" if self.together == 1 else f"act-order by groups of {self.together}"


@dataclass(frozen=True)
class Moments:
    """The inputs of a layer on the calibration text; layers with the same inputs share them.

    matrix     H [in, in] = 2/n sum x x^T, without damping.
    tokens     number of tokens in it.
    rank       eigenvalues above the rounding noise of the largest.
    condition  largest eigenvalue over the smallest one that counts.
    factors    factors of the matrix by damping and order, as they come to be needed.
    """

    matrix: Tensor
    tokens: int
    rank: int
    condition: float
    factors: dict[tuple[float, Order], Factor] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Number of inputs."""
        return len(self.matrix)

    def factor(self, damping: float, order: Order, layer: str, keep: bool = True) -> Factor:
        """Return the damped, factored matrix; keep it for the next one who asks, unless told."""
        key = (damping, order)
        if key in self.factors:
            return self.factors[key]
        found = factorize(
            self.matrix,
            damping,
            order.act_order,
            layer,
            self.tokens,
            together=order.together,
            checked=bool(self.factors),
        )
        if keep:
            found = self.factors[key] = found.keeping()
        return found

    def loss(self, apart: Tensor) -> float:
        """Return tr(E H E^T) of E [rows, in], from the upper triangle of H."""
        loss = 0.0
        for start, end, strip in self._strips:
            found = product(apart[:, start:end], strip)
            found[:, end - start :] *= 2  # the part below the diagonal is the same
            loss += float(found.mul_(apart[:, start:]).sum(dtype=torch.float64))
        return loss

    @cached_property
    def _strips(self) -> list[tuple[int, int, Tensor]]:
        """Rows first .. end of H, from the diagonal on; dense, as products want them."""
        bounds = strips(len(self.matrix))
        return [(start, end, self.matrix[start:end, start:].contiguous()) for start, end in bounds]

    def of(self, coordinates: Coordinates) -> Moments:
        """Return the moments of the inputs of a scaled weight."""
        if coordinates.columns is None:
            return self
        matrix = coordinates.hessian(self.matrix)
        return Moments(matrix, self.tokens, self.rank, self.condition)


def moments(matrix: Tensor, tokens: int) -> Moments:
    """Rank and condition of a Hessian [in, in], whose products were summed in float32."""
    values = torch.linalg.eigvalsh(matrix.double() if len(matrix) <= 256 else matrix)
    top = float(values[-1])
    noise = top * len(matrix) * torch.finfo(torch.float32).eps
    counting = values[values > max(noise, 0)]
    rank = min(len(counting), tokens)
    condition = top / float(counting[-rank]) if rank else 0.0
    return Moments(matrix, tokens, rank, condition)
