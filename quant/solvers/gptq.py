"""GPTQ (arXiv 2210.17323): columns are quantized in turn, the rest makes up for each error.

Algorithm 1 of the paper: with H^-1 = U^T U, quantizing column j leaves the error
e = (w_j - q_j) / U_jj, and subtracting e U_j,k from every later column k is the optimal update of
equation 2. Later columns are updated at once inside a block and once per block beyond it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cuda_ext.ops import resolve_kernel
from quant.errors import NonFiniteError
from quant.grid import Grid, assemble, check_finite, find_groups, stack_grids, working
from quant.hessian import Factor, factorize
from quant.scheme import Scheme
from quant.solvers.base import Solution
from quant.solvers.columns import Groups, plain_reason, sweep

GROUP_GRIDS = ("current", "stale")


@dataclass(frozen=True)
class GPTQOptions:
    """How the solver walks through a layer.

    damping        times mean(diag H), added to the diagonal; 0.01 in the paper.
    block_size     columns between two lazy batch updates; changes speed, not results (except with
                   stale grids).
    act_order      sweep over inputs by descending H_jj. Groups are then made of columns that are
                   neighbours in the sweep, and the weight carries a group_index.
    static_groups  compute all group grids up front, from the weights as they were: groups stay
                   neighbours in the layer under act_order too, and no group_index is needed.
    group_grid     "current": the grid of a group comes from weights that hold every update so far.
                   "stale": from the weights as they were when the current block of block_size
                   columns began; that is what the authors' code does, and differs from "current"
                   for groups that begin inside a block (groups smaller than block_size).
    damping_ladder shares to try, in turn, when the Hessian is singular with `damping`; every step
                   is larger than the one before. Empty, the default: that is an error. A step that
                   was needed is the Solution's `fallback`.
    kernel         what carries out the sweep: "reference" is Algorithm 1 of the paper in plain
                   PyTorch; "cpu" and "cuda" are the fused operator of cuda_ext, whose results
                   differ by rounding (quant.solvers.columns); "auto" is the operator of the device
                   where it can be had, with a line in the log where it cannot.

    Raises ValueError, one sentence with the way out, for what cannot be.
    """

    damping: float = 0.01
    block_size: int = 128
    act_order: bool = False
    static_groups: bool = False
    group_grid: str = "current"
    damping_ladder: tuple[float, ...] = ()
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(
                f"damping={self.damping} is not a share of the Hessian's mean diagonal; "
                "use 0.01 as in the paper, or any finite number from 0 on."
            )
        steps = (self.damping, *self.damping_ladder)
        if not all(math.isfinite(b) and a < b for a, b in pairwise(steps)):
            raise ValueError(
                f"damping_ladder={list(self.damping_ladder)} does not rise from "
                f"damping={self.damping:g}; list larger and larger shares, such as [0.1, 1.0]."
            )
        if self.block_size < 1:
            raise ValueError(
                f"block_size={self.block_size} is not a number of columns; use 128 as in the paper."
            )
        if self.group_grid not in GROUP_GRIDS:
            raise ValueError(
                f"group_grid={self.group_grid!r} is unknown; choose one of "
                f"{', '.join(GROUP_GRIDS)}."
            )
        if self.static_groups and self.group_grid == "stale":
            raise ValueError(
                "static_groups=true computes every grid up front, so group_grid=stale cannot act; "
                "use group_grid=current or static_groups=false."
            )


DEFAULT_OPTIONS = GPTQOptions()


@torch.no_grad()
def solve(
    weight: Tensor,
    hessian: Tensor | Factor,
    scheme: Scheme,
    options: GPTQOptions = DEFAULT_OPTIONS,
    layer: str = "this layer",
    tokens: int | None = None,
) -> Solution:
    """Quantize weight [out, in] against H [in, in] = 2/n * sum x x^T.

    Computed in float32, or in float64 if weight or hessian is; weight is left as it is. A Factor
    made by `prepare` with the same options stands for the Hessian of several layers with the same
    inputs. Weights of dead inputs become 0 before any grid is computed. `tokens`, how many went
    into H, makes errors say more. Raises NonFiniteError, SingularHessianError and
    QuantizationError (a scale beyond scheme.scale_dtype), all naming the layer.
    """
    layer = layer or "this layer"
    inputs = weight.shape[1]
    groups = scheme.groups(inputs)
    check_finite(weight, layer)
    factor = hessian if isinstance(hessian, Factor) else prepare(hessian, options, layer, tokens)
    _check_factor(factor, options, inputs, layer)
    dtype = torch.promote_types(working(weight).dtype, factor.root.dtype)
    weight = weight.detach().to(dtype)
    dead = int(factor.dead.sum())
    if dead:
        weight = weight.masked_fill(factor.dead, 0)
    groups_of = _plan_groups(weight, factor.order, groups, scheme, options, layer)
    columns = weight.T if factor.order is None else weight.T[factor.order]
    kernel = resolve_kernel(options.kernel, weight.device)
    columns = columns.contiguous()
    codes, loss = sweep(columns, factor, groups_of, scheme, options.block_size, kernel, layer)
    group_index = None
    if factor.order is not None:
        codes = torch.empty_like(codes).index_copy_(0, factor.order, codes)
        if groups > 1 and not options.static_groups:
            swept = torch.tensor(groups_of.index, dtype=torch.int32, device=codes.device)
            group_index = torch.empty_like(swept).index_copy_(0, factor.order, swept)
    grid = stack_grids(groups_of.grids).apply(lambda part: part.T)
    quantized = assemble(codes.T.contiguous(), grid, scheme, group_index)
    notes = [note for note in (_fallback(factor), plain_reason(kernel, scheme)) if note]
    return Solution(quantized, _finite(loss, layer), factor.damping, dead, "; ".join(notes) or None)


def _finite(loss: float, layer: str) -> float:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"{layer}: the loss of GPTQ is {loss}: its updates grew beyond the dtype; raise "
            "damping (0.01 is the paper's, 0.1 is strong) or look for huge weights or activations."
        )
    return loss


def _fallback(factor: Factor) -> str | None:
    if factor.used == factor.share:
        return None
    return f"damping {factor.used:g} instead of {factor.share:g}"


def prepare(
    hessian: Tensor,
    options: GPTQOptions = DEFAULT_OPTIONS,
    layer: str = "this layer",
    tokens: int | None = None,
) -> Factor:
    """Condition and factor H [in, in] once, for all the layers that see the same inputs."""
    return factorize(
        hessian,
        options.damping,
        options.act_order,
        layer,
        tokens,
        ladder=options.damping_ladder,
        blocked=resolve_kernel(options.kernel, hessian.device) != "reference",
    )


def _check_factor(factor: Factor, options: GPTQOptions, inputs: int, layer: str) -> None:
    if len(factor.root) != inputs:
        raise ValueError(
            f"{layer}: the Hessian is for {len(factor.root)} inputs, the weight has {inputs}."
        )
    if factor.share != options.damping or (factor.order is not None) != options.act_order:
        raise ValueError(
            f"{layer}: the factor was made with damping={factor.share:g}, "
            f"act_order={factor.order is not None}, but the options say {options.damping:g}, "
            f"{options.act_order}; call prepare with the same options."
        )


def _plan_groups(
    weight: Tensor,
    order: Tensor | None,
    groups: int,
    scheme: Scheme,
    options: GPTQOptions,
    layer: str,
) -> Groups:
    """The grid of each group (None: to be found during the sweep) and the group of each step."""
    stale = options.group_grid == "stale"
    inputs = weight.shape[1]
    size = min(scheme.group_size or inputs, inputs)
    if groups > 1 and not options.static_groups:
        return Groups([None] * groups, [step // size for step in range(inputs)], stale, size)
    whole = find_groups(weight, scheme, layer)
    grids: list[Grid | None] = [
        whole.apply(lambda part, group=group: part[:, group].contiguous())  # type: ignore[misc]
        for group in range(groups)
    ]
    swept = range(inputs) if order is None else order.tolist()
    return Groups(grids, [column // size for column in swept], stale, size)
