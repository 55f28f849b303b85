"""Budgets of pruning: the bits that a model stores at most, for each weight of the whole model.

They are counted as in the tables: packed layers with their scales, other matrices of the blocks in
their own type, a quantized head; over the weights of all of these before anything was removed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quant.coverage import Coverage
    from quant.memory.shapes import ModelShape
    from quant.scheme import Scheme

Shapes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Options:
    """Options of every transform that removes parts of a model.

    bits     stored bits for each weight of the whole model, at most.
    windows  calibration windows on which parts are scored, the first ones.
    """

    bits: float = 3.25
    windows: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.bits < 16:
            raise ValueError(f"bits={self.bits} is no budget; use stored bits a weight, as 3.25.")
        if self.windows < 1:
            raise ValueError(f"windows={self.windows} leaves nothing to score; use 1 or more.")

    def words(self) -> list[str]:
        """Return the budget, and a number of windows that is not the default, for tables."""
        more = [] if self.windows == type(self).windows else [f"{self.windows} windows"]
        return [f"{self.bits:g} bits", *more]


@dataclass(frozen=True)
class Budget:
    """A budget for a model at one scheme.

    bits     stored bits a weight at most.
    whole    stored bits of the whole model.
    weights  number of weights that they are counted over.
    """

    bits: float
    whole: float
    weights: int

    @property
    def excess(self) -> float:
        """Stored bits that have to go."""
        return self.whole - self.bits * self.weights

    def refusal(self, most: float, what: str) -> str | None:
        """Say why the budget cannot be met where `most` bits can go, and `what` must stay."""
        whole, least = self.whole / self.weights, (self.whole - most) / self.weights
        if self.excess <= 0:
            return (
                f"would remove nothing: the whole model has {whole:.4g} bits a weight at this "
                f"scheme and its budget is bits={self.bits:g}; use a smaller one, or leave the "
                "transform out"
            )
        if self.excess > most:
            return (
                f"cannot meet its budget bits={self.bits:g}: at this scheme {least:.4g} bits a "
                f"weight are left when {what}; use a scheme of fewer bits, or a larger budget"
            )
        return None


def stored_bits(layers: Shapes, scheme: Scheme) -> float:
    """Return the bits that packed layers (outputs, inputs) take."""
    return sum(n * m * scheme.bits_per_weight(m) for n, m in layers)


def budget_of(
    bits: float, coverage: Coverage, shape: ModelShape, blocks: Sequence[Shapes], scheme: Scheme
) -> Budget:
    """Return the budget of a model whose blocks have these layers."""
    whole = sum(stored_bits(layers, scheme.without_head) for layers in blocks)
    whole, weights = whole + coverage.kept_bits, coverage.total
    table, head = shape.table, None if shape.serves_head(scheme) else shape.head
    for own, matrix in ((scheme.embeddings, table), (scheme.head, head)):
        if own is not None and matrix is not None:
            whole += stored_bits([matrix], own)
            weights += math.prod(matrix)
    return Budget(bits, whole, weights)


def alike(coverage: Coverage, shape: ModelShape) -> bool:
    """Whether all blocks have the layers of the largest."""
    return shape.blocks * sum(map(math.prod, shape.layers)) == coverage.quantized
