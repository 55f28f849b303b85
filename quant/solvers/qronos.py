"""Qronos (arXiv 2505.11695): correct the error that the inputs have, then diffuse that of rounding.

The target is the layer's output in full precision, W X, where the quantized model has inputs X~.
Column by column, the level q_t is the best while the later columns stay as they are, and then these
take the values that are best beside it:

    q_t     = argmin_q ||W X - Q_{<t} X~_{<t} - q x~_t - V_{>t} X~_{>t}||,    V = W at first
    V_{>t}  = argmin_v ||W X - Q_{<=t} X~_{<=t} - v X~_{>t}||.

Once V_{>t} is a minimum, the next q is the level nearest to its own weight, and the next V follows
by GPTQ's update (theorem of the paper). So all of the correction is made with the first column: the
loop of GPTQ starts from the minimum over all columns, V = W (H + D) H^-1 (quant.solvers.mismatch),
and the first column is rounded from w_1 + (W D)_1 / H_11, the best while the others are as in W.
"""

from __future__ import annotations

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
    """Options of GPTQ (quant.solvers.gptq).

    true_sequential is the default: after one pass a block, every layer would make up for what the
    corrected layers before it in the block have made up for already, and deep models diverge.
    """

    true_sequential: bool = True


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def prepare(
    hessian: Tensor,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
    drift: Tensor | None = None,
) -> Prepared:
    """Factor H [in, in] = 2/n sum x~ x~^T as GPTQ does, and prepare D = 2/n sum (x - x~) x~^T.

    drift is D [in, in], or W D [out, in] for the weight that will be solved.
    """
    from quant.solvers import mismatch

    return mismatch.prepare(gptq.prepare(hessian, options, layer), drift)


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: Prepared,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Quantize weight [out, in]; grids are found from the corrected weights.

    Dtypes, kernels and errors are those of quant.solvers.gptq.solve; the loss is that of its loop,
    beside the corrected weights: the part of the objective that a choice of levels can change.
    """
    from quant.solvers.mismatch import corrected, in_loop

    factor, original = prepared.factor, weight.detach()
    weight, dead = corrected(weight, prepared, options.damping, options.act_order, layer.name)
    column = 0 if factor.order is None else int(factor.order[0])
    first = None
    if prepared.shift is not None and not factor.dead[column]:
        # (W D)_1 / H_11 with D = Z R^T and H = R R^T.
        row, shift = factor.root[0].to(weight.dtype), prepared.shift.to(weight.dtype)
        original = in_loop(original.to(weight.dtype), factor)
        moved = shift @ row if prepared.weighted else original @ (shift @ row)
        first = original[:, 0] + moved / row.square().sum()
    return gptq.quantize(weight, scheme, factor, options, layer, "Qronos", dead, first)


def oracle(
    weight: Tensor,
    scheme: Scheme,
    hessian: Tensor,
    damping: float,
    options: Options,
    drift: Tensor | None,
) -> Tensor:
    """Both problems of every step by their normal equations."""
    import torch

    from quant.solvers import textbook

    if drift is None:
        return gptq.oracle(weight, scheme, hessian, damping, options)
    dead, wide = hessian.diagonal() == 0, textbook.damped(hessian, damping)
    order = textbook.order_of(hessian, options.act_order)
    target = weight @ (hessian + drift)

    def best(values: Tensor, done: Tensor, left: Tensor) -> Tensor:
        missing = target[:, left] - values[:, done] @ hessian[done][:, left]
        missing += damping * weight[:, left]
        found: Tensor = torch.linalg.solve(wide[left][:, left], missing, left=False)
        return found

    def after(step: int, values: Tensor, current: Tensor) -> Tensor:
        left = order[step + 1 :]
        current[:, left] = best(values, order[: step + 1], left)
        return current.masked_fill(dead, 0)

    start = torch.empty_like(weight)
    start[:, order] = best(weight, order[:0], order)
    column = int(order[0])
    first = weight[:, column] + (weight @ drift)[:, column] / wide[column, column]
    return textbook.walked(
        start.masked_fill(dead, 0),
        scheme,
        order,
        after,
        wide,
        first=None if dead[column] else first,
        **textbook.grid_timing(options),
    )


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    return gptq.describe(options, DEFAULT_OPTIONS)


SOLVER = Solver(
    name="qronos",
    label="Qronos",
    solve=solve,
    options=Options,
    needs_calibration=True,
    needs_reference=True,
    weighted_drift=True,
    searches_with_hessian=True,
    uses_kernel=True,
    prepare=prepare,
    memory=Memory(weights=7, prepared=4, preparing=6),
    sequential=gptq.sequential,
    describe=describe,
    oracle=oracle,
)
