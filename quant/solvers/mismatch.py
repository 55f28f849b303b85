"""What GPTAQ, Qronos and GPFQ share: weights that make up for inputs other than in full precision.

A layer of the quantized model reads X~ [in, tokens] where that of the full-precision model reads X.
GPTAQ and Qronos look for levels near the minimum over V of

    ||W X - V X~||^2 + damping ||W - V||^2,

in which damping is that of GPTQ: it leaves W as it is where X~ = X. With H = X~ X~^T + damping,
H = R R^T, U = R^-1 and the drift D = (X - X~) X~^T, the minimum is

    V = W (H + D) H^-1 = W + W Z U,    Z = D U^T.

Z is computed once for all layers with the same inputs, in the order of the column loop. GPTAQ
takes a part of it, GPFQ another Z with its own root R; the loop of all three starts at W + W Z U.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.hessian import Factor
from quant.products import product
from quant.solvers.base import begin


@dataclass(frozen=True)
class Prepared:
    """The factor of the damped Hessian of X~, and Z [in, in] in loop order (None where X~ = X)."""

    factor: Factor
    shift: Tensor | None


def prepare(factor: Factor, drift: Tensor | None) -> Prepared:
    """Return what layers with the same inputs share, from D [in, in] in natural order."""
    if drift is None:
        return Prepared(factor, None)
    # Z R^T = D.
    shift: Tensor = torch.linalg.solve_triangular(
        factor.root.T, in_order(drift, factor), upper=False, left=False
    )
    return Prepared(factor, shift)


def in_order(drift: Tensor, factor: Factor) -> Tensor:
    """Return D [in, in] in the order of the column loop and the dtype of the factor."""
    matrix = drift.to(factor.root.dtype)
    return matrix if factor.order is None else matrix[factor.order][:, factor.order]


def corrected(
    weight: Tensor, prepared: Prepared, damping: float, act_order: bool, layer: str
) -> tuple[Tensor, Tensor | None, int]:
    """Return W + W Z U [out, in], W Z [out, in] in loop order, and the number of dead inputs.

    The weights of dead inputs are 0 in the first, as GPTQ has them, but count in W Z: what such an
    input adds to the output in full precision is missing, too.
    """
    factor, shift = prepared.factor, prepared.shift
    original = weight.detach()
    weight, dead = begin(weight, factor, damping, act_order, layer)
    if shift is None:
        return weight, None, dead
    original = original.to(weight.dtype)
    if factor.order is not None:
        original = original[:, factor.order]
    missing = product(original, shift.to(weight.dtype))
    root = factor.root.to(weight.dtype)
    change = torch.linalg.solve_triangular(root, missing, upper=True, left=False)
    if factor.order is not None:
        change = torch.empty_like(change).index_copy_(1, factor.order, change)
    weight = weight + change
    return (weight.masked_fill_(factor.dead, 0) if dead else weight), missing, dead
