"""Grids of a quantized weight as it is stored, and other codes on the same grids.

A checkpoint's grids are given, whoever found them. Rounding to the nearest level and GPTQ on these
grids have the same stored bytes as the checkpoint, so that only the choice of codes differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.grid import Grid, decode, encode
from quant.hessian import Factor
from quant.solvers.columns import Groups, column_loop
from quant.weight import QuantizedWeight

BLOCK = 128  # columns between two lazy updates; affects speed, not results
AT_ONCE = 1 << 18  # weights of a piece: their intermediate values stay in the processor's caches


@dataclass(frozen=True)
class Piece:
    """Adjacent groups of a weight that have equally many columns.

    columns  of these groups, one group after the other: a slice, or indices int64.
    size     columns of a group.
    grid     their grids [groups, out], in float32.
    """

    columns: slice | Tensor
    size: int
    grid: Grid

    def of(self, weight: Tensor) -> Tensor:
        """Return the part of weight [out, in] as [size, groups, out], which the grid fits."""
        groups: Tensor = weight[:, self.columns].unflatten(1, (-1, self.size))
        return groups.permute(2, 1, 0)


def pieces(weight: QuantizedWeight) -> Iterator[Piece]:
    """Yield all groups of a weight, many at a time."""
    outputs, inputs = weight.shape
    of_column, count = weight.column_groups(), weight.scheme.groups(inputs)
    sizes = torch.bincount(of_column, minlength=count).tolist()
    scattered = None if weight.group_index is None else torch.argsort(of_column, stable=True)
    first = start = 0
    while first < count:
        size, last = sizes[first], first + 1
        most = max(1, AT_ONCE // max(1, size * outputs))
        while last < min(count, first + most) and sizes[last] == size:
            last += 1
        end = start + size * (last - first)
        if size:
            columns = slice(start, end) if scattered is None else scattered[start:end]
            yield Piece(columns, size, _grids(weight, first, last))
        first, start = last, end


def _grids(weight: QuantizedWeight, first: int, last: int) -> Grid:
    """Return the grids [groups, out] of groups first .. last, in float32."""
    found = {}
    for each in weight.scheme.kind.tensors:
        part = weight.grid[each.name]
        entry = torch.arange(first, last) // (each.span or last)
        found[each.name] = part[:, entry].float().transpose(0, 1)
    return Grid(found)


def stored_grids(weight: QuantizedWeight) -> list[Grid]:
    """Return the grid [out] of every group, in float32."""
    groups = weight.scheme.groups(weight.shape[1])
    every = _grids(weight, 0, groups)
    return [
        every.apply(lambda part, at=at: part[at].contiguous())  # type: ignore[misc]
        for at in range(groups)
    ]


def rounded(weight: Tensor, on: QuantizedWeight) -> QuantizedWeight:
    """Return weight [out, in] rounded to the nearest levels of the grids of `on`."""
    codes = torch.empty_like(on.codes)
    for piece in pieces(on):
        found = encode(piece.of(weight), piece.grid, on.scheme).to(torch.uint8)
        codes[:, piece.columns] = found.permute(2, 1, 0).flatten(1)
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
    top, beyond = on.scheme.max_code, 0
    for piece in pieces(on):
        columns = piece.of(weight)
        ends = torch.tensor([0.0, 1.0, top - 1.0, top]).view(4, 1, 1).expand(4, *columns.shape[1:])
        levels = decode(ends.clone(), piece.grid, on.scheme)
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
