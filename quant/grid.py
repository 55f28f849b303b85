"""Grids: what every row or group of rows is quantized on, and the codes that weights get there.

What a grid holds, how it is found and how weights become codes on it is the business of the
scheme's levels (quant.levels); here is what is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import NonFiniteError, QuantizationError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight


@dataclass(frozen=True)
class Grid:
    """Grids of many rows: tensors of one shape by the names that the scheme's levels give them.

    In the dtype that the weights are computed in, and exactly as they will be stored.
    """

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def shape(self) -> torch.Size:
        return next(iter(self.tensors.values())).shape

    def apply(self, change: Callable[[Tensor], Tensor]) -> Grid:
        """The grid with every tensor changed in the same way."""
        return Grid({name: change(tensor) for name, tensor in self.tensors.items()})


def stack_grids(grids: Sequence[Grid | None]) -> Grid:
    """The grids [rows] of several groups as one [groups, rows]; those not found are left out."""
    found = [grid for grid in grids if grid is not None]
    return Grid({name: torch.stack([grid[name] for grid in found]) for name in found[0].tensors})


def find_grid(weight: Tensor, scheme: Scheme, layer: str = "this layer") -> Grid:
    """The grid [rows] of every row of weight [rows, columns], in float32 (float64 if given).

    A group of columns is quantized by handing in just these columns. Raises NonFiniteError for
    weights that are not finite and QuantizationError for scales beyond scheme.scale_dtype.
    """
    grid = Grid(scheme.kind.find(working(weight), scheme, layer))
    expected = {tensor.name for tensor in scheme.kind.tensors}
    if grid.tensors.keys() != expected:
        raise QuantizationError(
            f"{layer}: levels={scheme.kind.name} found a grid of {', '.join(grid.tensors)}, but "
            f"declare {', '.join(sorted(expected))}; correct LEVELS.tensors or its find."
        )
    return grid


def find_groups(weight: Tensor, scheme: Scheme, layer: str = "this layer") -> Grid:
    """The grids [out, groups] of weight [out, in], groups being neighbours; else as `find_grid`."""
    found = []
    for rows, count in _grid_rows(working(weight), scheme):
        tensors = find_grid(rows, scheme, layer).tensors
        found.append({name: part.reshape(-1, count) for name, part in tensors.items()})
    if len(found) == 1:
        return Grid(found[0])
    return Grid({name: torch.cat([part[name] for part in found], 1) for name in found[0]})


def quantize_groups(weight: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Codes uint8 [out, in] of the levels nearest to weight, on grids that `find_groups` found."""
    codes = []
    first = 0
    for rows, count in _grid_rows(working(weight), scheme):
        groups = slice(first, first + count)
        part = {name: each[:, groups].reshape(-1) for name, each in grid.tensors.items()}
        codes.append(quantize(rows, Grid(part), scheme).view(len(weight), -1))
        first += count
    return codes[0] if len(codes) == 1 else torch.cat(codes, 1)


def _grid_rows(weight: Tensor, scheme: Scheme) -> list[tuple[Tensor, int]]:
    """weight [out, in] as [out * groups, columns] and the groups: the whole ones, the short one."""
    inputs = weight.shape[1]
    size = scheme.group_size or inputs
    whole = inputs // size
    parts = []
    if whole:
        parts.append((weight[:, : whole * size].reshape(-1, size), whole))
    if whole * size < inputs:
        parts.append((weight[:, whole * size :], 1))
    return parts


def quantize(weight: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Codes uint8 [rows, columns] of the levels nearest to weight, one grid a row."""
    return encode(working(weight).T, grid, scheme).T.to(torch.uint8).contiguous()


def dequantize(codes: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """The values [rows, columns] of codes, in the dtype of the grid (float32 as a rule)."""
    dtype = next(iter(grid.tensors.values())).dtype
    return decode(codes.T.to(dtype), grid, scheme).T.contiguous()


def encode(columns: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Codes, as floating-point numbers, of weights [..., rows]: columns first, rows last.

    Solvers sweep over columns, and in this layout a column is contiguous.
    """
    return scheme.kind.encode(columns, grid.tensors, scheme)


def decode(codes: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """The values of floating-point codes [..., rows]; inverse of encode on the grid's levels."""
    return scheme.kind.decode(codes, grid.tensors, scheme)


def assemble(
    codes: Tensor, grid: Grid, scheme: Scheme, group_index: Tensor | None = None
) -> QuantizedWeight:
    """codes uint8 [out, in] and their grids [out, groups] as a QuantizedWeight."""
    scale_dtype = getattr(torch, scheme.scale_dtype)
    stored = {}
    for tensor in scheme.kind.tensors:
        # As one line first: .contiguous() would leave a single transposed group its strides.
        values = grid[tensor.name].reshape(-1).view(codes.shape[0], -1)
        stored[tensor.name] = values.to(torch.uint8 if tensor.code else scale_dtype)
    return QuantizedWeight(codes, scheme, group_index, stored)


def working(weight: Tensor) -> Tensor:
    """weight without its graph, in the dtype to compute in: float64 if it is, else float32."""
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def check_finite(weight: Tensor, layer: str = "this layer") -> None:
    """Raise NonFiniteError, naming layer, count and first place, unless weight is all finite."""
    if torch.isfinite(weight.sum()):  # one pass; NaN and infinity survive a sum
        return
    bad = (~torch.isfinite(weight)).nonzero()
    if not len(bad):  # only the sum overflowed
        return
    raise NonFiniteError(
        f"{layer or 'this layer'}: {len(bad)} of {weight.numel()} weights are NaN or infinite, the "
        f"first at row {int(bad[0, 0])}, column {int(bad[0, 1])}; load the model in float32 or "
        "bfloat16 if it was cast to float16, else fetch its checkpoint again."
    )
