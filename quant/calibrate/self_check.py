"""Hold the solver of a run against its textbook oracle, on small pieces of the model's layers.

A solver can be wrong without a sign: a method that shipped as plain rounding still gives a model
that talks. Each run therefore solves a piece of a few layers twice, with the solver as the run has
it (kernel, dtype, threads) and with the oracle of its spec in float64. It fails if their errors
differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quant.budget import AnyScheme, Budget
from quant.errors import QuantizationError, SingularHessianError, failures_of
from quant.solvers.base import Layer, Solver

ROWS, COLUMNS = 8, 96  # of a piece; with groups, at least two groups of columns
MOST_COLUMNS = 256  # the time of an oracle grows with their fourth power
# The error that a solver may have above or below its oracle's: float32 rounds some weights to the
# other of two levels, and later columns compensate otherwise.
ALLOWED = 0.01


@dataclass(frozen=True)
class Piece:
    """A piece of a layer: rows of its weight, and the first columns of weight and Hessian.

    The tensors are copies in the dtypes of the run; hessian is None without calibration, and drift
    (Solver.needs_reference) where the solver has none.
    """

    weight: Tensor
    hessian: Tensor | None
    drift: Tensor | None = None


def cut(
    weight: Tensor, hessian: Tensor | None, scheme: AnyScheme, drift: Tensor | None = None
) -> Piece:
    """Return the piece of a layer that is checked; rows are spread over the outputs."""
    outputs, inputs = weight.shape
    span = scheme.span(inputs)
    columns = min(inputs, max(COLUMNS, 2 * span) if span < inputs else COLUMNS, MOST_COLUMNS)
    count = COLUMNS if isinstance(scheme, Budget) else ROWS  # 8 rows have no low rank
    rows = torch.linspace(0, outputs - 1, min(count, outputs), device=weight.device).long()
    hessian, drift = (
        None if each is None else each[:columns, :columns].clone() for each in (hessian, drift)
    )
    return Piece(weight[rows, :columns].clone(), hessian, drift)


def self_check(
    piece: Piece, solver: Solver, options: Any, scheme: AnyScheme, layer: Layer
) -> float | None:
    """Return by how much the error of `solver` differs from its oracle's on a piece, as a share.

    The error is tr(E H E^T), with the identity as H for a solver without one. None if the piece's
    Hessian is singular, or if it is too small for the solver. Raises QuantizationError, naming the
    layer and both errors, if they differ by more than ALLOWED.
    """
    assert solver.oracle is not None
    rows, columns = piece.weight.shape
    if solver.refuses_shape(options, scheme, (rows, columns)) is not None:
        return None
    prepared: Any = piece.hessian
    beside = [piece.drift] if solver.needs_reference else []
    who = f"a piece of {layer.name}: solver {solver.name}"
    with failures_of(who):
        if prepared is not None and solver.prepare is not None:
            try:
                prepared = solver.prepare(prepared.clone(), options, layer, *beside)
            except SingularHessianError:
                return None  # of a piece alone; the layer's own is tested by its solver
        found = solver.solve(piece.weight, scheme, prepared, options, layer)
        wide = None if piece.hessian is None else piece.hessian.double()
        others = [None if each is None else each.double() for each in beside]
        expected = solver.oracle(
            piece.weight.double(), scheme, wide, found.damping, options, *others
        )
    ours, textbook = _error(piece, found.weight.dequantize()), _error(piece, expected)
    gap = ours / textbook - 1 if textbook else float(ours > 0)
    if not abs(gap) <= ALLOWED:
        raise QuantizationError(
            f"{who} leaves the error {ours:.6g} on {rows} rows and {columns} columns, where the "
            f"method as the textbook has it leaves {textbook:.6g}: figures under its name would be "
            f"of something else, so none are made; run it with runtime.kernel=reference to see "
            "whether the kernel is at fault, and report it with the model and these figures."
        )
    return gap


def _error(piece: Piece, values: Tensor) -> float:
    difference = piece.weight.double() - values.to(piece.weight.device, torch.float64)
    if piece.hessian is None:
        return float(difference.square().sum())
    return float(((difference @ piece.hessian.double()) * difference).sum())
