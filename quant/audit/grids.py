"""Grids of a quantized weight as it is stored, and other codes on the same grids.

A checkpoint's grids are given, whoever found them. Rounding to the nearest level and GPTQ on these
grids have the same stored bytes as the checkpoint, so that only the choice of codes differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.grid import Grid, decode, encode
from quant.hessian import Factor
from quant.solvers.columns import Groups, column_loop
from quant.weight import QuantizedWeight

BLOCK = 128  # columns between two lazy updates; affects speed, not results


def stored_grids(weight: QuantizedWeight) -> list[Grid]:
    """Return the grid [out] of every group, in float32."""
    tensors = {each.name: each for each in weight.scheme.kind.tensors}

    def grid_of(group: int) -> Grid:
        entry = {n: 0 if each.span is None else group // each.span for n, each in tensors.items()}
        return Grid({name: weight.grid[name][:, entry[name]].float() for name in tensors})

    return [grid_of(group) for group in range(weight.scheme.groups(weight.shape[1]))]


def rounded(weight: Tensor, on: QuantizedWeight) -> QuantizedWeight:
    """Return weight [out, in] rounded to the nearest levels of the grids of `on`."""
    groups = on.column_groups()
    codes = torch.empty_like(on.codes)
    for group, grid in enumerate(stored_grids(on)):
        columns = (groups == group).nonzero()[:, 0]
        codes[:, columns] = encode(weight[:, columns].T, grid, on.scheme).T.to(torch.uint8)
    return with_codes(on, codes)


def solved(weight: Tensor, on: QuantizedWeight, factor: Factor, kernel: str) -> QuantizedWeight:
    """Return weight [out, in] solved by GPTQ on the grids of `on` (as with static groups).

    factor  of the Hessian of the layer's inputs; its order is the order of the column loop.
    """
    groups = on.column_groups()
    order = torch.arange(len(groups)) if factor.order is None else factor.order
    found = Groups(list(stored_grids(on)), groups[order].tolist(), False, len(groups))
    columns = weight.masked_fill(factor.dead, 0).T[order].contiguous()
    codes, _ = column_loop(columns, factor, found, on.scheme, BLOCK, kernel, "this layer")
    back = torch.empty_like(codes)
    back[order] = codes
    return with_codes(on, back.T.contiguous())


def levels_used(weight: QuantizedWeight) -> int:
    """Return how many of the scheme's codes occur in a weight."""
    return int(torch.bincount(weight.codes.flatten().int(), minlength=1).count_nonzero())


def clipped(weight: Tensor, on: QuantizedWeight) -> float:
    """Return the share of weight [out, in] that its grid cuts off.

    That is a weight more than half a step beyond the outermost level: rounding moves it further
    than any weight between two levels.
    """
    groups, top, beyond = on.column_groups(), on.scheme.max_code, 0
    for group, grid in enumerate(stored_grids(on)):
        columns = weight[:, groups == group].T
        ends = torch.tensor([0.0, 1.0, top - 1.0, top]).view(4, 1).expand(4, len(weight))
        levels = decode(ends.clone(), grid, on.scheme)
        outer, inner = levels[[0, 3]], levels[[1, 2]]
        edge = outer + (outer - inner) / 2
        low, high = edge.amin(dim=0), edge.amax(dim=0)
        beyond += int(((columns < low) | (columns > high)).sum())
    return beyond / weight.numel()


def with_codes(weight: QuantizedWeight, codes: Tensor) -> QuantizedWeight:
    """Return other codes on the same grids."""
    return QuantizedWeight(codes, weight.scheme, weight.group_index, weight.grid)


def rows_of(weight: QuantizedWeight, rows: slice) -> QuantizedWeight:
    """Return some rows of a quantized weight."""
    grid = {name: part[rows] for name, part in weight.grid.items()}
    return QuantizedWeight(weight.codes[rows], weight.scheme, weight.group_index, grid)
