"""Solvers as a textbook has them, to hold the fast ones against: float64, and no factorization.

A run compares its solver with such an oracle on small pieces of the model's own layers
(quant.calibrate.self_check). Levels are not encoded but tried one by one, and the inverse Hessian
of the columns that are left is updated explicitly, so that nothing is shared with the column loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.grid import Grid, decode, find_groups
from quant.scheme import Scheme


def nearest(column: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Return the level nearest to each weight of column [rows], whose grids are `grid` [rows]."""
    codes = torch.arange(scheme.max_code + 1, dtype=column.dtype, device=column.device)
    levels = torch.stack([decode(code.expand(len(column)), grid, scheme) for code in codes])
    best = (levels - column).abs().argmin(dim=0)
    return levels.gather(0, best[None])[0]


def rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    """Return weight [out, in] with every value replaced by the nearest level of its grid."""
    size = scheme.group_size or weight.shape[1]
    grids = find_groups(weight, scheme)
    columns = [
        nearest(column, grids.apply(lambda part, at=at: part[:, at // size]), scheme)  # type: ignore[misc]
        for at, column in enumerate(weight.T)
    ]
    return torch.stack(columns, dim=1)


def compensated(
    weight: Tensor,
    scheme: Scheme,
    hessian: Tensor,
    order: Tensor,
    *,
    static: bool = False,
    stale_block: int | None = None,
) -> Tensor:
    """Return weight [out, in] with columns rounded in `order`, each error compensated (OBQ's step).

    After column j is rounded, the columns left move by -(w_j - q_j) V_j / V_jj, where V is the
    inverse of H [in, in] for the columns that are left (arXiv 2210.17323, equation 2), and V loses
    column j. hessian is damped. static: groups are neighbouring columns, and their grids those of
    the weights given; otherwise columns that follow each other in `order`, with the grids of the
    weights at the first of these steps, or at the last multiple of `stale_block` steps.
    """
    inputs = weight.shape[1]
    size, span = min(scheme.group_size or inputs, inputs), scheme.span(inputs)
    moving = size < inputs and not static
    values, current, before = torch.empty_like(weight), weight.clone(), weight.clone()
    inverse = torch.linalg.inv(hessian)
    grids = find_groups(weight, scheme)
    for step, j in enumerate(order.tolist()):
        if stale_block and step % stale_block == 0:
            before = current.clone()
        if moving and step % span == 0:
            source = before if stale_block else current
            grids = find_groups(source[:, order[step : step + span]], scheme)
        at = step % span // size if moving else j // size
        grid = grids.apply(lambda part, at=at: part[:, at])  # type: ignore[misc]
        values[:, j] = nearest(current[:, j], grid, scheme)
        error = (current[:, j] - values[:, j]) / inverse[j, j]
        left = order[step + 1 :]
        current[:, left] -= error[:, None] * inverse[j, left]
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return values
