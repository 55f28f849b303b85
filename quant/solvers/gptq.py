"""GPTQ (arXiv 2210.17323): columns are quantized in turn, the rest makes up for each error.

Algorithm 1 of the paper: with H^-1 = U^T U, quantizing column j leaves the error
e = (w_j - q_j) / U_jj, and subtracting e U_j,k from every later column k is the optimal update of
equation 2. Later columns are updated at once inside a block and once per block beyond it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import NonFiniteError
from quant.grid import Grid, assemble, check_finite, decode, encode, find_grid, working
from quant.hessian import Factor, factorize
from quant.scheme import Scheme
from quant.solvers.base import Solution

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

    Raises ValueError, one sentence with the way out, for what cannot be.
    """

    damping: float = 0.01
    block_size: int = 128
    act_order: bool = False
    static_groups: bool = False
    group_grid: str = "current"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(
                f"damping={self.damping} is not a share of the Hessian's mean diagonal; "
                "use 0.01 as in the paper, or any finite number from 0 on."
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
    into H, makes errors say more. Raises SchemeError, NonFiniteError, SingularHessianError and
    QuantizationError (a scale beyond scheme.scale_dtype), all naming the layer.
    """
    layer = layer or "this layer"
    inputs = weight.shape[1]
    groups = scheme.groups(inputs, layer)
    check_finite(weight, layer)
    factor = hessian if isinstance(hessian, Factor) else prepare(hessian, options, layer, tokens)
    _check_factor(factor, options, inputs, layer)
    dtype = torch.promote_types(working(weight).dtype, factor.upper.dtype)
    weight = weight.detach().to(dtype).masked_fill(factor.dead, 0)
    grids, group_of = _plan_groups(weight, factor.order, groups, scheme, options, layer)
    columns = weight.T if factor.order is None else weight.T[factor.order]
    upper = factor.upper.to(dtype)
    codes, loss = _sweep(columns.contiguous(), upper, grids, group_of, scheme, options, layer)
    group_index = None
    if factor.order is not None:
        codes = torch.empty_like(codes).index_copy_(0, factor.order, codes)
        if groups > 1 and not options.static_groups:
            swept = torch.tensor(group_of, dtype=torch.int32, device=codes.device)
            group_index = torch.empty_like(swept).index_copy_(0, factor.order, swept)
    quantized = assemble(codes.T.contiguous(), _stack(grids), scheme, group_index)
    return Solution(quantized, loss, factor.damping, int(factor.dead.sum()))


def prepare(
    hessian: Tensor,
    options: GPTQOptions = DEFAULT_OPTIONS,
    layer: str = "this layer",
    tokens: int | None = None,
) -> Factor:
    """Condition and factor H [in, in] once, for all the layers that see the same inputs."""
    return factorize(hessian, options.damping, options.act_order, layer, tokens)


def _check_factor(factor: Factor, options: GPTQOptions, inputs: int, layer: str) -> None:
    if len(factor.upper) != inputs:
        raise ValueError(
            f"{layer}: the Hessian is for {len(factor.upper)} inputs, the weight has {inputs}."
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
) -> tuple[list[Grid | None], list[int]]:
    """The grid of each group (None: to be found during the sweep) and the group of each step."""
    outputs, inputs = weight.shape
    size = inputs // groups
    if groups > 1 and not options.static_groups:
        return [None] * groups, [step // size for step in range(inputs)]
    whole = find_grid(weight.reshape(outputs * groups, size), scheme, layer)
    parts = [
        [None] * groups if part is None else part.reshape(outputs, groups).T.contiguous().unbind()
        for part in (whole.scale, whole.zero, whole.negative_scale)
    ]
    grids: list[Grid | None] = [Grid(*group) for group in zip(*parts, strict=True)]
    swept = range(inputs) if order is None else order.tolist()
    return grids, [column // size for column in swept]


def _sweep(
    columns: Tensor,
    upper: Tensor,
    grids: list[Grid | None],
    group_of: list[int],
    scheme: Scheme,
    options: GPTQOptions,
    layer: str,
) -> tuple[Tensor, float]:
    """Codes uint8 [in, out] and the loss of columns [in, out], both in sweep order.

    A column of the weight is a row here: contiguous, as everything in the loop is per column.
    `columns` is overwritten and fills in the grids that are None.
    """
    stale = options.group_grid == "stale"
    size = len(group_of) // len(grids)
    codes = torch.empty_like(columns, dtype=torch.uint8)
    loss = torch.zeros((), dtype=columns.dtype, device=columns.device)
    diagonal = upper.diagonal().tolist()
    for start, end in _blocks(len(columns), options.block_size, None if stale else size):
        block = columns[start:end].clone()  # `columns` keeps what the block began with
        errors = torch.empty_like(block)
        for i, column in enumerate(block):
            step = start + i
            group = group_of[step]
            if grids[group] is None:
                # _blocks never cuts a group that begins inside a block, unless grids are stale.
                fresh = block[i : i + size] if i and not stale else columns[step : step + size]
                grids[group] = find_grid(fresh.T, scheme, layer)
            grid = grids[group]
            assert grid is not None
            code = encode(column, grid, scheme)
            codes[step] = code
            error = torch.div(column - decode(code, grid, scheme), diagonal[step], out=errors[i])
            block[i + 1 :].addr_(upper[step, step + 1 : end], error, alpha=-1)
        columns[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
        loss += errors.square().sum()
    total = float(loss) / 2
    if not math.isfinite(total):
        raise NonFiniteError(
            f"{layer}: the loss of GPTQ is {total}: its updates grew beyond the dtype; raise "
            "damping (0.01 is the paper's, 0.1 is strong) or look for huge weights or activations."
        )
    return codes, total


def _blocks(columns: int, block_size: int, group_size: int | None) -> list[tuple[int, int]]:
    """Where lazy blocks begin and end: every block_size columns.

    With a group_size a block ends early rather than in the middle of a group that began inside
    it, so that such a group is up to date when its grid is found.
    """
    blocks = []
    start = 0
    while start < columns:
        end = min(start + block_size, columns)
        if group_size is not None and end // group_size * group_size > start:
            end = end // group_size * group_size
        blocks.append((start, end))
        start = end
    return blocks


def _stack(grids: list[Grid | None]) -> Grid:
    """The grids of all groups as one, rows of the same output beside each other."""
    found = [grid for grid in grids if grid is not None]

    def join(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.stack(present, dim=1).reshape(-1) if present else None

    scale = join([grid.scale for grid in found])
    assert scale is not None
    return Grid(
        scale,
        join([grid.zero for grid in found]),
        join([grid.negative_scale for grid in found]),
    )
