"""What GPTAQ, Qronos and GPFQ share: weights that make up for inputs other than in full precision.

A layer of the quantized model reads X~ [in, tokens] where that of the full-precision model reads X.
GPTAQ and Qronos look for levels near the minimum over V of

    ||W X - V X~||^2 + damping ||W - V||^2,

in which damping is that of GPTQ: it leaves W as it is where X~ = X. With H = X~ X~^T + damping,
H = R R^T, U = R^-1 and the drift D = (X - X~) X~^T, the minimum is

    V = W (H + D) H^-1 = W + W Z U,    Z = D U^T.

Z is computed once for all layers with the same inputs, in the order of the column loop. GPTAQ
takes what is above its diagonal, GPFQ another Z with its own root R; the loop of all three starts
at W + W Z U. Products with U = R^-1 are made panel by panel, with inverses of the diagonal blocks
of R alone: nearly all of the work is then large products, of which a Z that is 0 below its
diagonal needs a half in the one and a third in the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.hessian import Factor
from quant.products import product
from quant.solvers.base import begin
from quant.tiling import PANEL

# Rows of a product with a triangle, of which the part that is 0 is left out.
STRIP = 2 * PANEL


@dataclass(frozen=True)
class Prepared:
    """The factor of the damped Hessian of X~, and Z [in, in] in loop order (None where X~ = X).

    upper     whether Z is 0 below its diagonal.
    weighted  whether it is W Z [out, in] of the one layer that it is for.
    """

    factor: Factor
    shift: Tensor | None
    upper: bool = False
    weighted: bool = False


def prepare(
    factor: Factor, drift: Tensor | None, share: float = 1.0, upper: bool = False
) -> Prepared:
    """Return what layers with the same inputs share, from D [in, in] in natural order.

    W D [out, in] in the place of D, of fewer outputs than inputs (quant.drift.weighing), gives W Z
    in the place of Z.

    share  what Z is multiplied by. upper: take what is above the diagonal of Z alone, which needs
           no more of D (in loop order).
    """
    if drift is None:
        return Prepared(factor, None)
    rows, inputs = drift.shape
    weighted = rows != inputs
    matrix = in_loop(drift.to(factor.root.dtype), factor) if weighted else in_order(drift, factor)
    shift = matrix.clone()
    _solve_right(shift, factor, 0, inputs, upper)  # Z R^T = D
    if upper:
        shift.triu_(1)
    if share != 1:
        shift *= share
    # `_change` reads Z^T.
    return Prepared(factor, shift.T.contiguous().T, upper, weighted)


def in_order(drift: Tensor, factor: Factor) -> Tensor:
    """Return D [in, in] in the order of the column loop and the dtype of the factor."""
    matrix = drift.to(factor.root.dtype)
    return matrix if factor.order is None else matrix[factor.order][:, factor.order]


def corrected(
    weight: Tensor, prepared: Prepared, damping: float, act_order: bool, layer: str
) -> tuple[Tensor, int]:
    """Return W + W Z U [out, in] and the number of dead inputs.

    The weights of dead inputs are 0 in the first, as GPTQ has them, but count in W Z: what such an
    input adds to the output in full precision is missing, too.
    """
    factor = prepared.factor
    original = weight.detach()
    weight, dead = begin(weight, factor, damping, act_order, layer)
    if prepared.shift is None:
        return weight, dead
    columns = in_loop(original.to(weight.dtype), factor).T.contiguous()
    moved = _change(columns, prepared).add_(columns)
    if factor.order is not None:
        moved = torch.empty_like(moved).index_copy_(0, factor.order, moved)
    weight = moved.T  # every column dense, as the column loop wants it
    return (weight.masked_fill_(factor.dead, 0) if dead else weight), dead


def in_loop(weight: Tensor, factor: Factor) -> Tensor:
    """Return weight [out, in] with its columns in the order of the column loop."""
    return weight if factor.order is None else weight[:, factor.order]


def _change(columns: Tensor, prepared: Prepared) -> Tensor:
    """Return (W Z U)^T [in, out] from W^T [in, out] in loop order."""
    assert prepared.shift is not None
    shift = prepared.shift.to(columns.dtype)
    if prepared.weighted:
        change = shift.T.clone()
    elif not prepared.upper:
        change = product(shift.T, columns)
    else:
        change = torch.empty_like(columns)
        for start in range(0, len(columns), STRIP):
            end = min(start + STRIP, len(columns))
            change[start:end] = product(shift[:end, start:end].T, columns[:end])
    _solve_left(change, prepared.factor, 0, len(change))  # R^T (W Z U)^T = (W Z)^T
    return change


def _solve_left(values: Tensor, factor: Factor, start: int, end: int) -> None:
    """Replace rows start .. end of values [in, n] by Y with R^T Y = values, these rows of R alone.

    By halves, so that nearly all of the work is large products.
    """
    if end - start <= PANEL:
        inverse = factor.inverse(start, end).to(values.dtype)
        values[start:end] = product(inverse.T, values[start:end])
        return
    middle = _middle(start, end)
    _solve_left(values, factor, start, middle)
    beside = factor.root[start:middle, middle:end].to(values.dtype)
    values[middle:end] -= product(beside.T, values[start:middle])
    _solve_left(values, factor, middle, end)


def _solve_right(values: Tensor, factor: Factor, start: int, end: int, upper: bool) -> None:
    """Replace columns start .. end of values [in, in] by Y with Y R^T = values, these of R alone.

    upper  of Y what is on and above its diagonal is wanted.
    """
    if end - start <= PANEL:
        rows = slice(0, end if upper else None)
        values[rows, start:end] = product(values[rows, start:end], factor.inverse(start, end).T)
        return
    middle = _middle(start, end)
    rows = slice(0, middle if upper else None)
    _solve_right(values, factor, middle, end, upper)
    beside = factor.root[start:middle, middle:end]
    values[rows, start:middle] -= product(values[rows, middle:end], beside.T)
    _solve_right(values, factor, start, middle, upper)


def _middle(start: int, end: int) -> int:
    """Return a multiple of PANEL columns behind `start`, about half of the way to `end`."""
    return start + -(-(end - start) // (2 * PANEL)) * PANEL
