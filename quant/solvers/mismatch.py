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


@dataclass(frozen=True)
class Prepared:
    """The factor of the damped Hessian of X~, and Z [in, in] in loop order (None where X~ = X).

    upper  whether Z is 0 below its diagonal.
    """

    factor: Factor
    shift: Tensor | None
    upper: bool = False


def prepare(
    factor: Factor, drift: Tensor | None, share: float = 1.0, upper: bool = False
) -> Prepared:
    """Return what layers with the same inputs share, from D [in, in] in natural order.

    share  what Z is multiplied by. upper: take what is above the diagonal of Z alone, which needs
           no more of D (in loop order).
    """
    if drift is None:
        return Prepared(factor, None)
    drift = in_order(drift, factor)
    shift = torch.zeros_like(drift)
    # Z R^T = D: Z_P = (D_P - Z_>P (R_P,>P)^T) (U_PP)^T, from the last panel to the first.
    for start, end in reversed(_panels(len(shift))):
        rows = slice(0, end if upper else None)
        panel = drift[rows, start:end]
        if end < len(shift):
            panel = panel - product(shift[rows, end:], factor.root[start:end, end:].T)
        shift[rows, start:end] = product(panel, factor.inverse(start, end).T)
    if upper:
        shift.triu_(1)
    return Prepared(factor, shift if share == 1 else shift.mul_(share), upper)


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
    change = _change(in_loop(original.to(weight.dtype), factor).T.contiguous(), prepared)
    if factor.order is not None:
        change = torch.empty_like(change).index_copy_(0, factor.order, change)
    weight = weight + change.T
    return (weight.masked_fill_(factor.dead, 0) if dead else weight), dead


def in_loop(weight: Tensor, factor: Factor) -> Tensor:
    """Return weight [out, in] with its columns in the order of the column loop."""
    return weight if factor.order is None else weight[:, factor.order]


def _change(columns: Tensor, prepared: Prepared) -> Tensor:
    """Return (W Z U)^T [in, out] from W^T [in, out] in loop order, panel by panel.

    (W Z U)_P = ((W Z)_P - (W Z U)_<P R_<P,P) U_PP.
    """
    assert prepared.shift is not None
    factor, dtype = prepared.factor, columns.dtype
    change = torch.empty_like(columns)
    for start, end in _panels(len(columns)):
        rows = slice(0, end if prepared.upper else None)
        missing = product(prepared.shift[rows, start:end].to(dtype).T, columns[rows])
        if start:
            missing -= product(factor.root[:start, start:end].to(dtype).T, change[:start])
        change[start:end] = product(factor.inverse(start, end).to(dtype).T, missing)
    return change


def _panels(columns: int) -> list[tuple[int, int]]:
    return [(at, min(at + PANEL, columns)) for at in range(0, columns, PANEL)]
