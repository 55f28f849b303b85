"""GPFQ (arXiv 2201.11113): greedy path following, each column beside what all so far should add.

Column by column, q_t is the level for which the quantized columns so far are nearest to what the
same columns of the full-precision layer add to its output:

    q_t = argmin_q ||W_{<=t} X_{<=t} - Q_{<t} X~_{<t} - q x~_t||.

Later columns are not changed. The minimum over all numbers q is that of inputs' products alone,
with H = X~ X~^T and G = X X~^T (the memory-efficient form of arXiv 2505.11695):

    w'_t = (sum_{j<=t} w_j G_jt - sum_{j<t} q_j H_jt) / H_tt.

This is GPTQ's column loop, too: from the weights W triu(G) triu(H)^-1, with the triangular root
R = triu(H) diag(H)^-1 in the place of a Cholesky factor (U = R^-1 has ones on its diagonal). For,
with d_j = w_j - q_j, the equation above says w' = W triu(G) diag(H)^-1 - Q (R - 1), and the loop
gives every column w'_k = s_k - sum_{j<k} (w'_j - q_j) U_jk, that is w' - q = (s - q) R for its
start s.

The alphabet of the paper is fixed before the first step, from the weights themselves. Here, too,
all grids are those of W: w' may go far beyond its range where a small input is correlated with
large ones, and a grid wide enough for that rounds all of its group to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quant.solvers import gptaq, gptq
from quant.solvers.base import Layer, Memory, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.scheme import Scheme
    from quant.solvers.mismatch import Prepared


@dataclass(frozen=True)
class Options(gptq.Options):
    """Options of GPTQ (quant.solvers.gptq); the paper has no damping, and none is needed.

    Every grid is found from the layer's own weights, so that group_grid has no effect, and
    static_groups only that of keeping neighbours together with act_order.

    true_sequential is the default: after one pass a block, every layer would make up for what the
    corrected layers before it in the block have made up for already, and deep models diverge.
    """

    damping: float = 0.0
    true_sequential: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_grid == "stale":
            raise ValueError(
                "GPFQ finds every grid from the layer's own weights before its loop, so "
                "group_grid=stale has no effect; leave it out."
            )


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def prepare(
    hessian: Tensor,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
    drift: Tensor | None = None,
) -> Prepared:
    """Return R of H [in, in] = 2/n sum x~ x~^T, and D = 2/n sum (x - x~) x~^T = G - H beside it."""
    from quant.hessian import Factor, condition, dead_inputs
    from quant.solvers.mismatch import Prepared, in_order

    dead = dead_inputs(hessian, layer.name, layer.tokens)
    matrix, order, absolute = condition(hessian, dead, options.damping, int(options.act_order))
    diagonal = matrix.diagonal().clone()
    factor = Factor(
        matrix.triu_() / diagonal, order, dead, absolute, options.damping, options.damping
    )
    if drift is None:
        return Prepared(factor, None)
    # W triu(G) triu(H)^-1 = W + W Z U.
    return Prepared(factor, in_order(drift, factor).triu() / diagonal, upper=True)


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: Prepared,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Quantize weight [out, in]; grids are found from it, with weights of dead inputs as 0.

    Dtypes, kernels and errors are those of quant.solvers.gptq.solve. No loss is reported: the sum
    of the loop is not that of the layer's output.
    """
    from quant.solvers.mismatch import corrected

    factor, own = prepared.factor, weight.detach()
    weight, dead = corrected(weight, prepared, options.damping, options.act_order, layer.name)
    own = own.to(weight.dtype)
    if dead:
        own = own.masked_fill(factor.dead, 0)
    solution = gptq.quantize(weight, scheme, factor, options, layer, "GPFQ", dead, fixed=own)
    return replace(solution, loss=None)


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    return gptq.describe(options, DEFAULT_OPTIONS)


def oracle(
    weight: Tensor,
    scheme: Scheme,
    hessian: Tensor,
    damping: float,
    options: Options,
    drift: Tensor | None,
) -> Tensor:
    """The column of every step from the sums over all columns before it."""
    import torch

    from quant.solvers import textbook

    dead, wide = hessian.diagonal() == 0, textbook.damped(hessian, damping)
    order = textbook.order_of(hessian, options.act_order)
    both = wide if drift is None else wide + drift
    full = weight.masked_fill(dead, 0) if drift is None else weight

    def after(step: int, values: Tensor, current: Tensor) -> Tensor:
        added = values.clone()  # and what the columns left would be if they were not rounded
        for at in range(step + 1, len(order)):
            k, before = order[at], order[:at]
            wanted = full[:, order[: at + 1]] @ both[order[: at + 1], k]
            left = wanted - added[:, before] @ wide[before, k]
            added[:, k] = torch.where(dead[k], 0, left / wide[k, k])
        return current.index_copy(1, order[step + 1 :], added[:, order[step + 1 :]])

    start = after(-1, torch.zeros_like(weight), torch.zeros_like(weight))
    return textbook.walked(
        start,
        scheme,
        order,
        after,
        wide,
        static=options.static_groups,
        fixed=weight.masked_fill(dead, 0),
    )


SOLVER = Solver(
    name="gpfq",
    label="GPFQ",
    solve=solve,
    options=Options,
    needs_calibration=True,
    needs_reference=True,
    upper_drift=gptaq.upper_drift,
    uses_kernel=True,
    prepare=prepare,
    memory=Memory(weights=7, prepared=4, preparing=6),
    version=2,
    sequential=gptq.sequential,
    describe=describe,
    oracle=oracle,
)
