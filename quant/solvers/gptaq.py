"""GPTAQ (arXiv 2504.02692): GPTQ whose target is the layer's output in full precision.

GPTQ asks that Q X~ be near W X~, where X~ are the inputs behind the quantized layers; GPTAQ asks
that it be near W X. When column j is rounded, what it should have added to the output is w_j x_j
and what it adds is q_j x~_j. The rest, (w_j - q_j) x~_j + w_j (x_j - x~_j), is passed to the later
columns by least squares. The first part is GPTQ's update. The second one adds to column k

    w_j P_jk,    P = triu(D U^T, 1) U,    D = (X - X~) X~^T,    H^-1 = U^T U,

because U[j+1:, j+1:] is the factor of the inverse Hessian of these columns. Nothing in it depends
on what was rounded, so that GPTAQ is GPTQ's column loop on W (I + alpha P).

The paper's own code multiplies P by the weights after their updates (and, across blocks of columns,
by their levels), and alpha, which the derivation has as 1, is 0.25 there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.solvers import gptq
from quant.solvers.base import Layer, Memory, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.scheme import Scheme
    from quant.solvers.mismatch import Prepared


@dataclass(frozen=True)
class Options(gptq.Options):
    """Options of GPTQ (quant.solvers.gptq) and

    alpha  share of the correction for the difference of the inputs; 1 is what follows from the
           objective, 0.25 the authors' default, 0 is GPTQ.

    true_sequential is the default: after one pass a block, every layer would make up for what the
    corrected layers before it in the block have made up for already, and deep models diverge.
    """

    true_sequential: bool = True
    alpha: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.alpha) and 0 <= self.alpha <= 1):
            raise ValueError(
                f"alpha={self.alpha} is not a share of the correction; use 0.25 as the authors do, "
                "or any number from 0 (GPTQ) to 1 (all of it)."
            )


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def prepare(
    hessian: Tensor,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
    drift: Tensor | None = None,
) -> Prepared:
    """Factor H [in, in] = 2/n sum x~ x~^T as GPTQ does, and prepare D = 2/n sum (x - x~) x~^T."""
    from quant.solvers import mismatch

    factor = gptq.prepare(hessian, options, layer)
    return mismatch.prepare(factor, drift if options.alpha else None, options.alpha, upper=True)


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: Prepared,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Quantize weight [out, in]; grids are found from the corrected weights.

    Dtypes, kernels and errors are those of quant.solvers.gptq.solve; the loss is that of its loop,
    beside the corrected weights.
    """
    from quant.solvers.mismatch import corrected

    weight, dead = corrected(weight, prepared, options.damping, options.act_order, layer.name)
    return gptq.quantize(weight, scheme, prepared.factor, options, layer, "GPTAQ", dead)


def upper_drift(options: Options) -> bool:
    """Whether P is made of the drift's upper triangle: in natural order."""
    return not options.act_order


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = gptq.describe(options, DEFAULT_OPTIONS)
    return words if options.alpha == DEFAULT_OPTIONS.alpha else [*words, f"alpha {options.alpha:g}"]


def oracle(
    weight: Tensor,
    scheme: Scheme,
    hessian: Tensor,
    damping: float,
    options: Options,
    drift: Tensor | None,
) -> Tensor:
    """Pass each w_j (x_j - x~_j) to the later columns by least squares, then take GPTQ's steps."""
    import torch

    from quant.solvers import textbook

    if drift is not None:
        wide, order = (
            textbook.damped(hessian, damping),
            textbook.order_of(hessian, options.act_order),
        )
        moved = torch.zeros_like(weight)
        for step, j in enumerate(order.tolist()):
            left = order[step + 1 :]
            passed = torch.linalg.solve(wide[left][:, left], drift[j, left])
            moved[:, left] += options.alpha * torch.outer(weight[:, j], passed)
        weight = weight + moved
    return gptq.oracle(weight, scheme, hessian, damping, options)


SOLVER = Solver(
    name="gptaq",
    label="GPTAQ",
    solve=solve,
    options=Options,
    needs_calibration=True,
    needs_reference=True,
    upper_drift=upper_drift,
    searches_with_hessian=True,
    uses_kernel=True,
    prepare=prepare,
    memory=Memory(weights=7, prepared=4, preparing=6),
    sequential=gptq.sequential,
    describe=describe,
    oracle=oracle,
)
