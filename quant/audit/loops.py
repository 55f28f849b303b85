"""Column loops step by step: whether each code is the one that a loop would choose where it is.

A loop rounds w'_j = w_j + d_{<j} c_j, with the errors d = w - q of a row's columns before j and
coefficients c_j that follow from its Hessian. GPTQ's are those of a triangular root
(H + damping = R R^T),

    w'_j - q_j = (d R)_j / R_jj,

so that one product with a checkpoint's own errors gives what the loop would have rounded to each of
its codes. Two runs of one solver on one text part more and more along a row, once the rounding of a
sum has changed one code; step by step they do not.

Of a loop with other coefficients, codes alone cannot tell whether the text was another or the
solver a weaker one: every R belongs to some Hessian. So the weaker solvers that are known are tried
by name (`Trials.any_loop`): any damping, a greedy loop, no corrections across blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.audit.grids import rounded
from quant.audit.moments import Moments
from quant.hessian import Factor
from quant.products import product
from quant.weight import QuantizedWeight


def followed(
    weight: Tensor, found: QuantizedWeight, factor: Factor, first: int | None = None
) -> float:
    """Return the share of codes that the column loop of a factor would choose where they are.

    weight [out, in] is that of the grids of `found`. first: so many columns of the loop count, from
    its first one on; None: all. Inputs that were 0 on all of the text do not count.
    """
    order = torch.arange(len(factor.dead)) if factor.order is None else factor.order
    values = found.dequantize()
    apart = (weight - values).masked_fill_(factor.dead, 0)[:, order]
    target = torch.empty_like(values)
    target[:, order] = product(apart, factor.root.to(apart.dtype)) / factor.root.diagonal()
    # Values, not codes: FP4 has two zeros.
    same = rounded(target.add_(values), found).dequantize() == values
    counting = order[~factor.dead[order]][:first]
    return float(same[:, counting].float().mean())


def greedy(inputs: Moments, like: Factor) -> Factor:
    """Return the factor of the greedy loop (GPFQ) in the order of `like`.

    Its column gets what the errors before it leave of the output, and nothing is left for those to
    come: R = triu(H) diag(H)^-1 (quant.solvers.gpfq).
    """
    order = torch.arange(len(like.dead)) if like.order is None else like.order
    root = inputs.matrix[order][:, order].triu()
    root.diagonal()[like.dead[order]] = 1
    return Factor(root / root.diagonal(), like.order, like.dead, 0.0, 0.0, 0.0)
