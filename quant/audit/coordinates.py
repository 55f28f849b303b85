"""Coordinates: the factors by which a quantizer scaled a weight before it rounded it.

AWQ, SmoothQuant and similar methods multiply the columns of a weight by factors and divide the
layer before (a norm, or the rows of a linear layer) by them. Such a checkpoint quantizes

    W' = diag(r) W diag(s)

and its codes mean nothing beside W itself. Rows r and columns s are found here by least squares
from the dequantized weight, and used only if they explain a good part of its error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# A scaling is believed if it takes away this share of the squared error. The factors of an unscaled
# weight take away only the noise that they fit, 1 / outputs + 1 / inputs.
EXPLAINS = 0.25
NOISE = 1e-6  # of the squared weight: no more than rounding of the arithmetic
TURNS = 6


@dataclass(frozen=True)
class Coordinates:
    """Row factors [out] and column factors [in] of a scaled weight; None where there are none.

    uncertainty  relative standard error of the factor of every weight, [out or 1, in or 1].
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    uncertainty: Tensor | float = 0.0

    def scaled(self, weight: Tensor) -> Tensor:
        """Return diag(r) W diag(s)."""
        weight = weight if self.rows is None else weight * self.rows[:, None]
        return weight if self.columns is None else weight * self.columns

    def unscaled(self, weight: Tensor) -> Tensor:
        """Return diag(1/r) W' diag(1/s): a weight of the checkpoint beside those of its base."""
        weight = weight if self.rows is None else weight / self.rows[:, None]
        return weight if self.columns is None else weight / self.columns

    def hessian(self, matrix: Tensor) -> Tensor:
        """Return the Hessian [in, in] of the inputs of the scaled weight, which are x / s."""
        if self.columns is None:
            return matrix
        return matrix / self.columns / self.columns[:, None]

    @property
    def words(self) -> str | None:
        """What was scaled: "rows", "columns", "rows and columns"; None: nothing."""
        found = [name for name in ("rows", "columns") if getattr(self, name) is not None]
        return " and ".join(found) or None


def find_coordinates(weight: Tensor, quantized: Tensor) -> Coordinates:
    """Find the scaling of weight [out, in] that a dequantized weight was made from."""
    both = _Sums(weight, quantized)
    best = Coordinates()
    error = both.error(best)
    if error < NOISE * both.norm:
        return best
    for rows, columns in ((False, True), (True, False), (True, True)):
        found = both.fit(rows, columns)
        explained = both.error(found)
        # A scaling of both must beat the better of one alone by as much again.
        if explained < (1 - EXPLAINS) * error:
            best, error = found, explained
    return replace(best, uncertainty=_uncertainty(best, weight, quantized))


def _uncertainty(found: Coordinates, weight: Tensor, quantized: Tensor) -> Tensor | float:
    """Standard errors of the fitted factors, from what they leave unexplained in each line."""
    fitted = found.scaled(weight)
    total: Tensor | float = 0.0
    for factors, dim in ((found.columns, 0), (found.rows, 1)):
        if factors is not None:
            left = (quantized - fitted).square().sum(dim, keepdim=True)
            own = fitted.square().sum(dim, keepdim=True).clamp(min=1e-30) * weight.shape[dim]
            total = total + (left / own).sqrt()
    return total


class _Sums:
    """Least squares of Q = diag(r) W diag(s), whose sums are products of vectors with W^2 and W Q.

    norm  ||Q||_F^2.
    """

    def __init__(self, weight: Tensor, quantized: Tensor) -> None:
        self._own, self._cross = weight.square(), weight * quantized  # elementwise
        self._ones = torch.ones(len(weight)), torch.ones(weight.shape[1])
        self.norm = float(torch.linalg.vector_norm(quantized, dtype=torch.float64)) ** 2

    def fit(self, rows: bool, columns: bool) -> Coordinates:
        """Return the best factors, alternating if both are free."""
        r, s = self._ones
        for _ in range(TURNS if rows and columns else 1):
            if columns:
                s = _factors(r @ self._cross, r.square() @ self._own)
            if rows:
                r = _factors(self._cross @ s, self._own @ s.square())
        return Coordinates(r if rows else None, s if columns else None)

    def error(self, found: Coordinates) -> float:
        """Squared error beside the best common factor, so that no uniform shrinkage is a scaling.

        That is |Q|^2 - (Q . W')^2 / |W'|^2 for the scaled weight W'.
        """
        r = self._ones[0] if found.rows is None else found.rows
        s = self._ones[1] if found.columns is None else found.columns
        along = float((r @ self._cross).double() @ s.double())
        own = float((r.square() @ self._own).double() @ s.double().square())
        return self.norm - (along * along / own if own else 0.0)


def _factors(cross: Tensor, own: Tensor) -> Tensor:
    """The factor of every column or row; 1 for a zero weight or another sign."""
    found = cross / own
    return torch.where((own > 0) & (found > 0), found, 1.0)
