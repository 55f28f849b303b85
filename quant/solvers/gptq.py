"""GPTQ (arXiv 2210.17323): quantize columns in turn and compensate each error in later columns.

Algorithm 1 of the paper: with H^-1 = U^T U, quantizing column j leaves the error e = (w_j - q_j) /
U_jj, and subtracting e U_j,k from every later column k is the optimal update of equation 2. Later
columns are updated immediately inside a block and once per block beyond it.

Importing this module does not import torch (quant.solvers.base); its functions do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory, Solution, Solver, begin, finite_loss

if TYPE_CHECKING:
    from torch import Tensor

    from quant.grid import Grid
    from quant.hessian import Factor
    from quant.scheme import Scheme
    from quant.solvers.columns import Groups

GROUP_GRIDS = ("current", "stale")


@dataclass(frozen=True)
class Options:
    """How the solver processes the columns of a layer and the layers of a block.

    damping          multiple of mean(diag H) that is added to the diagonal; 0.01 in the paper.
    damping_ladder   larger and larger damping shares that are tried in turn when the Hessian is
                     singular with `damping`. Empty, the default: a singular Hessian is an error.
                     The step that was used is reported as the Solution's `fallback`.
    block_size       columns between two lazy batch updates; affects speed, not results (except with
                     stale grids).
    act_order        process inputs in the order of descending H_jj. Groups are then made of columns
                     that are adjacent in the loop, and the weight has a group_index.
    static_groups    compute all group grids first, from the original weights: groups are then
                     adjacent columns of the layer even with act_order, and no group_index is
                     needed.
    group_grid       "current": the grid of a group is found from weights with all updates so far.
                     "stale": it is found from the weights as they were when the current block of
                     block_size columns began, as in the authors' code; this differs from "current"
                     for groups that begin inside a block (groups smaller than block_size).
    true_sequential  collect Hessians stage by stage inside a block instead of all at once: q k v,
                     output, up and gate, down, each with the quantized layers before it.

    Raises ValueError, with a sentence that says what to change, for invalid values.
    """

    damping: float = 0.01
    damping_ladder: tuple[float, ...] = ()
    block_size: int = 128
    act_order: bool = False
    static_groups: bool = False
    group_grid: str = "current"
    true_sequential: bool = False

    def __post_init__(self) -> None:
        # A configuration passes a list; a tuple makes options hashable and comparable.
        object.__setattr__(self, "damping_ladder", tuple(self.damping_ladder))
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
                "static_groups=true computes every grid first, so group_grid=stale has no effect; "
                "use group_grid=current or static_groups=false."
            )


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: Factor,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Quantize weight [out, in] with the Hessian that `prepare` factored with the same options.

    Computes in float32, or in float64 if weight or Hessian is float64; weight is not modified.
    Weights of dead inputs are set to 0 before any grid is found. layer.kernel runs the column loop:
    "reference" is Algorithm 1 of the paper in plain PyTorch; "cpu" and "cuda" are the fused
    operator of cuda_ext, whose results differ by rounding (quant.solvers.columns). Raises
    NonFiniteError, SingularHessianError and QuantizationError (a scale exceeds scheme.scale_dtype);
    all name the layer.
    """
    weight, dead = begin(weight, prepared, options.damping, options.act_order, layer.name)
    return quantize(weight, scheme, prepared, options, layer, "GPTQ", dead)


def quantize(
    weight: Tensor,
    scheme: Scheme,
    factor: Factor,
    options: Options,
    layer: Layer,
    label: str,
    dead: int,
    first: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Solution:
    """Run the column loop on weight [out, in], from which every grid is found.

    For the solvers whose loop is GPTQ's: label is theirs, for errors, and dead their count of dead
    inputs, whose weights are 0 already. first [out], if given, is rounded in the place of the first
    column of the loop, whose own weights stay what the later columns make up for. fixed [out, in],
    if given, are the weights from which all grids are found before the loop.
    """
    import torch

    from cuda_ext.ops import resolve_kernel
    from quant.grid import assemble, stack_grids
    from quant.solvers.columns import column_loop, plain_reason, round_first

    inputs = weight.shape[1]
    groups = scheme.groups(inputs)
    groups_of = _plan_groups(weight, fixed, factor, groups, scheme, options, layer.name)
    columns = weight.T if factor.order is None else weight.T[factor.order]
    kernel = resolve_kernel(layer.kernel, weight.device)
    columns = columns.contiguous()
    before = 0.0
    if first is not None:
        columns, before = round_first(columns, first, factor, groups_of, scheme, layer.name)
    codes, loss = column_loop(
        columns, factor, groups_of, scheme, options.block_size, kernel, layer.name
    )
    group_index = None
    if factor.order is not None:
        codes = torch.empty_like(codes).index_copy_(0, factor.order, codes)
        if groups > 1 and not options.static_groups:
            steps = torch.tensor(groups_of.index, dtype=torch.int32, device=codes.device)
            group_index = torch.empty_like(steps).index_copy_(0, factor.order, steps)
    grid = stack_grids(groups_of.grids).apply(lambda part: part.transpose(0, 1))
    quantized = assemble(codes.T.contiguous(), grid, scheme, group_index)
    notes = [note for note in (_fallback(factor), plain_reason(kernel, scheme)) if note]
    fallback = "; ".join(notes) or None
    return Solution(
        quantized, finite_loss(before + loss, label, layer.name), factor.damping, dead, fallback
    )


def _fallback(factor: Factor) -> str | None:
    if factor.used == factor.share:
        return None
    return f"damping {factor.used:g} instead of {factor.share:g}"


def prepare(
    hessian: Tensor, options: Options = DEFAULT_OPTIONS, layer: Layer = ANY_LAYER
) -> Factor:
    """Damp and factor H [in, in] = 2/n * sum x x^T for all layers with the same inputs."""
    from cuda_ext.ops import resolve_kernel
    from quant.hessian import factorize

    return factorize(
        hessian,
        options.damping,
        options.act_order,
        layer.name,
        layer.tokens,
        ladder=options.damping_ladder,
        blocked=resolve_kernel(layer.kernel, hessian.device) != "reference",
    )


def sequential(options: Options) -> bool:
    """Whether Hessians are collected stage by stage inside a block."""
    return options.true_sequential


def describe(options: Options, defaults: Options = DEFAULT_OPTIONS) -> list[str]:
    """Return the options that differ from a solver's defaults, in the words of tables."""
    labels = {
        "damping": f"damp {options.damping}",
        "damping_ladder": f"damp ladder {list(options.damping_ladder)}",
        "block_size": f"block {options.block_size}",
        "act_order": "act-order",
        "static_groups": "static groups",
        "group_grid": f"{options.group_grid} grids",
        "true_sequential": "true-sequential" if options.true_sequential else "one pass",
    }
    names = [field.name for field in fields(DEFAULT_OPTIONS)]  # a solver like it may have more
    changed = [n for n in names if getattr(options, n) != getattr(defaults, n)]
    return [labels[name] for name in changed]


def _plan_groups(
    weight: Tensor,
    fixed: Tensor | None,
    factor: Factor,
    groups: int,
    scheme: Scheme,
    options: Options,
    layer: str,
) -> Groups:
    """Return the group of each step and the grid of each group (None: found during the loop)."""
    from quant.grid import find_groups
    from quant.solvers.columns import Groups

    stale, order = options.group_grid == "stale", factor.order
    inputs = weight.shape[1]
    size = min(scheme.group_size or inputs, inputs)
    together = scheme.span(inputs)  # columns whose grids are found at once
    moving = groups > 1 and not options.static_groups
    in_order = [step // size for step in range(inputs)]
    if moving and together < inputs and fixed is None:
        return Groups([None] * groups, in_order, stale, together, factor.block)
    blocks = factor.block
    weight = weight if fixed is None else fixed
    if order is not None and moving:
        weight = weight[:, order]
    elif order is not None:  # groups are adjacent inputs, wherever their steps are
        in_order = [column // size for column in order.tolist()]
        blocks = partial(_block_of_inputs, factor)
    whole = find_groups(weight, scheme, layer, blocks)
    grids: list[Grid | None] = [
        whole.apply(lambda part, group=group: part[:, group].contiguous())  # type: ignore[misc]
        for group in range(groups)
    ]
    return Groups(grids, in_order, stale, together)


def _block_of_inputs(factor: Factor, inputs: slice) -> Tensor:
    """Return H, damped, of adjacent inputs of the layer."""
    assert factor.order is not None
    return factor.block(factor.order.argsort()[inputs])


def oracle(
    weight: Tensor, scheme: Scheme, hessian: Tensor, damping: float, options: Options
) -> Tensor:
    """OBQ's step in the order of the options, with the inverse of the columns that are left."""
    from quant.solvers import textbook

    return textbook.compensated(
        weight.masked_fill(hessian.diagonal() == 0, 0),
        scheme,
        textbook.damped(hessian, damping),
        textbook.order_of(hessian, options.act_order),
        **textbook.grid_timing(options),
    )


SOLVER = Solver(
    name="gptq",
    label="GPTQ",
    solve=solve,
    options=Options,
    needs_calibration=True,
    searches_with_hessian=True,
    uses_kernel=True,
    prepare=prepare,
    # Measured: weights 4.5; preparing 3.2, with act-order 4.0, with LAPACK's copies
    # (kernel=reference) 5.0. Prepared: the root, and its inverse with kernel=reference.
    memory=Memory(weights=5, prepared=3, preparing=5),
    version=2,
    sequential=sequential,
    describe=describe,
    oracle=oracle,
)
