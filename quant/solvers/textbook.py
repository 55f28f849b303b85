"""Solvers as a textbook has them, to hold the fast ones against: float64, and no factorization.

A run compares its solver with such an oracle on small pieces of the model's own layers
(quant.calibrate.self_check). Levels are not encoded but tried one by one, and the inverse Hessian
of the columns that are left is updated explicitly, so that nothing is shared with the column loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quant.grid import Grid, decode, encode, find_groups
from quant.scheme import Scheme


def nearest(column: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Return the level nearest to each weight of column [rows], whose grids are `grid` [rows]."""
    codes = torch.arange(scheme.max_code + 1, dtype=column.dtype, device=column.device)
    levels = decode(codes[:, None].expand(-1, len(column)), grid, scheme)
    distance = (levels - column).abs()
    best = distance.argmin(dim=0, keepdim=True)
    # Of two levels as near, the one that the levels take: outputs' errors tell the two apart.
    own = encode(column, grid, scheme).long()[None]
    best = torch.where(distance.gather(0, own) == distance.gather(0, best), own, best)
    return levels.gather(0, best)[0]


def order_of(hessian: Tensor, act_order: bool) -> Tensor:
    """Return the input of each step: natural order, or by falling H_jj (1 for dead inputs)."""
    if act_order:
        return damped(hessian, 0).diagonal().argsort(descending=True, stable=True)
    return torch.arange(len(hessian), device=hessian.device)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """Return H [in, in] with 1 as H_jj of dead inputs, and damping on the diagonal."""
    return hessian + torch.diag((hessian.diagonal() == 0).to(hessian) + damping)


def grid_timing(options: Any) -> dict[str, Any]:
    """Return the arguments of `walked` that say when GPTQ's options have grids found."""
    stale = options.block_size if options.group_grid == "stale" else None
    return {"static": options.static_groups, "stale_block": stale}


def rounded(weight: Tensor, scheme: Scheme, hessian: Tensor | None = None) -> Tensor:
    """Return weight [out, in] with every value replaced by the nearest level of its grid.

    hessian  H [in, in], for grids that are searched with it.
    """
    size = scheme.group_size or weight.shape[1]
    blocks = None if hessian is None else lambda part: hessian[part, part]
    grids = find_groups(weight, scheme, hessian=blocks)
    columns = [
        nearest(column, grids.apply(lambda part, at=at: part[:, at // size]), scheme)  # type: ignore[misc]
        for at, column in enumerate(weight.T)
    ]
    return torch.stack(columns, dim=1)


def walked(
    start: Tensor,
    scheme: Scheme,
    order: Tensor,
    after: Callable[[int, Tensor, Tensor], Tensor],
    hessian: Tensor,
    *,
    first: Tensor | None = None,
    static: bool = False,
    stale_block: int | None = None,
    fixed: Tensor | None = None,
) -> Tensor:
    """Return the levels [out, in] that columns are rounded to, one by one in `order`.

    after   after(step, values, current) -> the weights that the columns left have after a step;
            values are the levels so far, current the weights that they had.
    start   the weights [out, in] before the first step.
    hessian H [in, in], damped, for grids that are searched with it.
    first   what is rounded at the first step in the place of its weight in `start`.
    static  groups are neighbouring columns, and their grids those of `start`; otherwise columns
            that follow each other in `order`, with the grids of the weights at the first of these
            steps, or at the last multiple of `stale_block` steps.
    fixed   weights [out, in] whose grids are taken in the place of all these.
    """
    inputs = start.shape[1]
    size, span = min(scheme.group_size or inputs, inputs), scheme.span(inputs)
    moving = size < inputs and not static
    values, current, before = torch.zeros_like(start), start.clone(), start.clone()

    def found(source: Tensor, members: Tensor) -> Grid:
        block = hessian[members][:, members]
        return find_groups(source[:, members], scheme, hessian=lambda part: block[part, part])

    everything = torch.arange(inputs, device=start.device)
    grids = found(start if fixed is None else fixed, everything)  # one group, or static ones
    for step, j in enumerate(order.tolist()):
        if stale_block and step % stale_block == 0:
            before = current.clone()
        if moving and step % span == 0:
            moved = before if stale_block else current
            grids = found(moved if fixed is None else fixed, order[step : step + span])
        at = step % span // size if moving else j // size
        grid = grids.apply(lambda part, at=at: part[:, at])  # type: ignore[misc]
        turn = current[:, j] if first is None or step else first
        values[:, j] = nearest(turn, grid, scheme)
        current = after(step, values, current)
    return values


def compensated(
    weight: Tensor, scheme: Scheme, hessian: Tensor, order: Tensor, **how: Any
) -> Tensor:
    """Return weight [out, in] rounded in `order`, each error compensated (OBQ's step).

    After column j is rounded, the columns left move by -(w_j - q_j) V_j / V_jj, where V is the
    inverse of H [in, in] for the columns that are left (arXiv 2210.17323, equation 2), and V loses
    column j. hessian is damped. `how` has the grids' options of `walked`.
    """
    inverse = torch.linalg.inv(hessian)

    def after(step: int, values: Tensor, current: Tensor) -> Tensor:
        j, left = order[step], order[step + 1 :]
        error = (current[:, j] - values[:, j]) / inverse[j, j]
        current[:, left] -= error[:, None] * inverse[j, left]
        inverse.sub_(torch.outer(inverse[:, j], inverse[j]) / inverse[j, j])
        return current

    return walked(weight, scheme, order, after, hessian, **how)
