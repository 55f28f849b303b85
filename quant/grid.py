"""Grid: the scale and offset tensors of many rows, and the codes of weights on them.

The scheme's levels (quant.levels) define what a grid contains, how it is found and how weights are
encoded; this module has what is common to all levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import NonFiniteError, QuantizationError
from quant.grid_search import search
from quant.levels.base import SEARCHES, GridTensor
from quant.scheme import Scheme
from quant.tiling import ENCODED_WEIGHTS
from quant.weight import QuantizedWeight

# (steps of adjacent columns) -> H [columns, columns] of their inputs
Blocks = Callable[[slice], Tensor]


@dataclass(frozen=True)
class Grid:
    """Grids of many rows: tensors by the names that the scheme's levels declare.

    They are in the dtype of the computation and hold exactly the values that will be stored. Every
    group has its own numbers here, even if several groups share a stored entry, so all tensors have
    the same shape, with one more dimension if an entry has several numbers.
    """

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        """The size of the first dimension."""
        return len(next(iter(self.tensors.values())))

    def apply(self, change: Callable[[Tensor], Tensor]) -> Grid:
        """Return the grid with `change` applied to every tensor."""
        return Grid({name: change(tensor) for name, tensor in self.tensors.items()})


def stack_grids(grids: Sequence[Grid | None]) -> Grid:
    """Stack the grids [rows] of several groups into one [groups, rows], skipping None entries."""
    found = [grid for grid in grids if grid is not None]
    return Grid({name: torch.stack([grid[name] for grid in found]) for name in found[0].tensors})


def find_groups(
    weight: Tensor, scheme: Scheme, layer: str = "this layer", hessian: Blocks | None = None
) -> Grid:
    """Return the grids [out, groups] of weight [out, in]; the columns of a group are adjacent.

    hessian  gives the diagonal blocks of H, for schemes that search with them.
    Computed in float32 (float64 for float64 weights). Grids that the levels find together need all
    of their columns (scheme.span) at once: a solver that reaches groups one by one passes all these
    columns when it reaches the first. Raises NonFiniteError for weights that are not finite,
    QuantizationError for scales that exceed their type and for levels that find other tensors than
    they declare, SchemeError for a scheme to which such a weight cannot be quantized.
    """
    found = []
    outputs, inputs = weight.shape
    scheme.require(inputs, layer)
    for rows, count, block in _pieces(working(weight), scheme, hessian):
        tensors = find_grid(rows, scheme, layer, block).tensors
        groups = scheme.groups(rows.shape[1])
        part = {}
        for each in scheme.kind.tensors:
            tensor = tensors[each.name]
            if each.span != 1:
                entry = torch.arange(groups, device=tensor.device) // (each.span or groups)
                tensor = tensor[:, entry]
            part[each.name] = tensor.reshape(outputs, count * groups, *each.entry_shape(scheme))
        found.append(part)
    if len(found) == 1:
        return Grid(found[0])
    return Grid({name: torch.cat([part[name] for part in found], 1) for name in found[0]})


def find_grid(
    weight: Tensor, scheme: Scheme, layer: str = "this layer", hessian: Tensor | None = None
) -> Grid:
    """Return the grid that the levels find for every row of weight [rows, columns].

    hessian  H [columns, columns], for schemes that search with it.
    """
    kind, weight = scheme.kind, working(weight)
    if kind.candidates is not None and scheme.grid in SEARCHES:
        found = search(weight, scheme, layer, hessian)
    else:
        found = kind.find(weight, scheme, layer)
    rows, groups = len(weight), scheme.groups(weight.shape[1])
    together = kind.span != 1
    expected = {
        each.name: (rows, *[each.entries(groups)] * together, *each.entry_shape(scheme))
        for each in kind.tensors
    }
    if found.keys() != expected.keys():
        raise QuantizationError(
            f"{layer}: levels={kind.name} found a grid of {', '.join(found)}, but "
            f"declare {', '.join(sorted(expected))}; correct LEVELS.tensors or its find."
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise QuantizationError(
                f"{layer}: levels={kind.name} found a {name} of shape {list(found[name].shape)} "
                f"for {rows} rows and {groups} groups; return {list(shape)} as LEVELS.tensors "
                "declare, or correct LEVELS.tensors."
            )
    return Grid(found)


def quantize_groups(weight: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Return codes uint8 [out, in] of the levels nearest to weight, on grids from `find_groups`.

    ENCODED_WEIGHTS at a time, because levels may hold a dozen numbers for each of them.
    """
    codes = []
    first = 0
    for rows, count in _parts(working(weight), scheme.group_size or weight.shape[1]):
        groups = slice(first, first + count)
        part = grid.apply(lambda each, groups=groups: each[:, groups].flatten(0, 1))  # type: ignore[misc]
        found = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
        at_once = max(1, ENCODED_WEIGHTS // rows.shape[1])
        for begin in range(0, len(rows), at_once):
            some = slice(begin, begin + at_once)
            grids = part.apply(lambda each, some=some: each[some])  # type: ignore[misc]
            found[some] = quantize(rows[some], grids, scheme)
        codes.append(found.view(len(weight), -1))
        first += count
    return codes[0] if len(codes) == 1 else torch.cat(codes, 1)


def _pieces(
    weight: Tensor, scheme: Scheme, hessian: Blocks | None
) -> Iterator[tuple[Tensor, int, Tensor | None]]:
    """Yield weight [out, in] as `_parts` does, or group by group, each with its block of H."""
    size = scheme.span(weight.shape[1])
    if hessian is None or not scheme.needs_hessian:
        yield from ((*part, None) for part in _parts(weight, size))
        return
    for begin in range(0, weight.shape[1], size):
        columns = weight[:, begin : begin + size]
        yield columns, 1, hessian(slice(begin, begin + columns.shape[1])).to(weight.dtype)


def _parts(weight: Tensor, size: int) -> list[tuple[Tensor, int]]:
    """Split weight [out, in] into pieces of `size` columns: ([out * count, columns], count) each.

    The whole pieces come as one tensor, then the short last piece if there is one.
    """
    inputs = weight.shape[1]
    whole = inputs // size
    parts = []
    if whole:
        parts.append((weight[:, : whole * size].reshape(-1, size), whole))
    if whole * size < inputs:
        parts.append((weight[:, whole * size :], 1))
    return parts


def quantize(weight: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Return codes uint8 [rows, columns] of the levels nearest to weight, with one grid per row."""
    return encode(working(weight).T, grid, scheme).T.to(torch.uint8).contiguous()


def dequantize(codes: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Return the values [rows, columns] of codes in the dtype of the grid (usually float32)."""
    dtype = next(iter(grid.tensors.values())).dtype
    return decode(codes.T.to(dtype), grid, scheme).T.contiguous()


def encode(columns: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Return codes, as floating-point numbers, of weights [..., rows]: columns first, rows last.

    Solvers iterate over columns, and a column is contiguous in this order.
    """
    return scheme.kind.encode(columns, grid.tensors, scheme)


def decode(codes: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Return the values of floating-point codes [..., rows]; inverse of encode on the levels."""
    return scheme.kind.decode(codes, grid.tensors, scheme)


def assemble(
    codes: Tensor, grid: Grid, scheme: Scheme, group_index: Tensor | None = None
) -> QuantizedWeight:
    """Return codes uint8 [out, in] and their grids [out, groups] as a QuantizedWeight.

    Raises QuantizationError for numbers that their storage type cannot represent exactly.
    """
    stored = {}
    for each in scheme.kind.tensors:
        # Make it contiguous, whatever the strides of a single transposed group were.
        values = shared(grid[each.name], each, 1)
        values = values.reshape(-1).view(values.shape)
        kept = values.to(getattr(torch, each.storage(scheme)))
        if not torch.equal(kept.to(values.dtype), values):
            raise QuantizationError(
                f"levels={scheme.kind.name} found a {each.name} that {each.storage(scheme)} does "
                "not represent exactly; round it in find (quant.scales.round_scale), so that "
                "weights are quantized on the grid that is stored."
            )
        stored[each.name] = kept
    return QuantizedWeight(codes, scheme, group_index, stored)


def shared(tensor: Tensor, declared: GridTensor, dim: int) -> Tensor:
    """Return the stored entries of numbers per group along `dim`: the first of each entry."""
    groups = tensor.shape[dim]
    step = groups if declared.span is None else declared.span
    return tensor if step == 1 else tensor[(slice(None),) * dim + (slice(None, None, step),)]


def working(weight: Tensor) -> Tensor:
    """Return weight, detached, in the dtype of the computation: float64 if it is, else float32."""
    weight = weight.detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def check_finite(weight: Tensor, layer: str = "this layer") -> None:
    """Raise NonFiniteError, with layer, count and first position, if weight is not all finite."""
    if torch.isfinite(weight.sum()):  # one pass; NaN and infinity survive a sum
        return
    bad = (~torch.isfinite(weight)).nonzero()
    if not len(bad):  # only the sum overflowed
        return
    raise NonFiniteError(
        f"{layer or 'this layer'}: {len(bad)} of {weight.numel()} weights are NaN or infinite, the "
        f"first at row {int(bad[0, 0])}, column {int(bad[0, 1])}; load the model in float32 or "
        "bfloat16 if it was cast to float16, else download its checkpoint again."
    )
