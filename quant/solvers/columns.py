"""GPTQ's column loop: Algorithm 1 of the paper, and an equivalent loop over panels.

Both quantize column j, divide its error by U_jj and subtract the error times U_jk from the later
columns k (H^-1 = U^T U, arXiv 2210.17323, equations 2 and 3). kernel="reference" is Algorithm 1 to
the letter: a plain loop over the columns of a block, then a lazy update of all later columns.

The compiled kernels do not need the inverse of the whole Hessian. Let H = R R^T (R upper
triangular, so U = R^-1) and let d_i = w_i - q_i be the error of the quantized column i. After the
updates of all columns before column s, the weights of the panel P that begins at s are

    w'_P = w_P + d_{<s} R_{<s,P} U_PP,    U_PP = (R_PP)^-1,

the minimum of d H d^T over the columns from s on. A panel is therefore updated once, by two long
matrix products, instead of after every earlier block; inside a panel Algorithm 1 runs with U_PP. In
exact arithmetic the result is the same. In float32 it rounds differently, with no larger error
(tests compare both with the float64 oracle), and it avoids the inverse, which is two thirds of the
work of the factorization.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cuda_ext.column_loop import gptq_column_loop
from quant.grid import Blocks, Grid, decode, encode, find_groups, stack_grids
from quant.hessian import Factor
from quant.products import product
from quant.scheme import Scheme
from quant.tiling import PANEL

# (block [columns, rows], upper, grids [groups, rows], group of each step, scheme) -> codes, errors
Columns = Callable[[Tensor, Tensor, Grid, list[int], Scheme], tuple[Tensor, Tensor]]


@dataclass
class Groups:
    """The groups of a layer's columns.

    grids  tensors [rows] of each group; None until the loop has found the grid.
    index  the group of every step of the loop.
    stale  whether grids are found from the weights as they were when the current block began.
    size   number of columns whose grids are found at once (several groups; the last piece may be
           shorter).
    hessian
           gives the blocks of H by steps of the loop, for grids that are searched with them.
    """

    grids: list[Grid | None]
    index: list[int]
    stale: bool
    size: int
    hessian: Blocks

    @property
    def found(self) -> bool:
        """Whether every grid is known; if not, the columns of a group are adjacent in the loop."""
        return all(grid is not None for grid in self.grids)

    def find(self, group: int, columns: Tensor, scheme: Scheme, layer: str) -> None:
        """Find the grids of columns [columns, rows], which are the groups from `group` on."""
        begin = group * (scheme.group_size or 0)

        def block(part: slice) -> Tensor:
            return self.hessian(slice(begin + part.start, begin + part.stop))

        grids = find_groups(columns.T, scheme, layer, block)
        for at in range(scheme.groups(len(columns))):
            self.grids[group + at] = grids.apply(lambda part, at=at: part[:, at])  # type: ignore[misc]


def column_loop(
    columns: Tensor,
    factor: Factor,
    groups: Groups,
    scheme: Scheme,
    block_size: int,
    kernel: str,
    layer: str,
) -> tuple[Tensor, float]:
    """Return codes uint8 [in, out] and the loss of columns [in, out], both in loop order.

    The weight is transposed, so that each column is contiguous: the loop works per column. kernel
    is "reference", "cpu" or "cuda". Inside the panels, float64 (which no kernel supports) and
    levels without a compiled loop (`plain_reason`) use the plain loop. Missing grids are found and
    added to `groups`.
    """
    size = None if groups.found else groups.size
    blocks = _blocks(len(columns), block_size, None if groups.stale else size)
    whole = kernel == "reference"
    fused = not whole and columns.dtype == torch.float32 and scheme.kind.loop_arguments is not None
    panels = [blocks] if whole else _panels(blocks, size)
    return _loop_over_panels(
        columns, factor, groups, scheme, panels, fused_columns if fused else plain_columns, layer
    )


def round_first(
    columns: Tensor, first: Tensor, factor: Factor, groups: Groups, scheme: Scheme, layer: str
) -> tuple[Tensor, float]:
    """Round `first` [out] in the place of the first column, before the loop begins.

    Returns columns [in, out] in which the first is the level that was chosen, where the loop leaves
    it, and the later ones make up for its distance from the column as it was; and its loss.
    """
    group = groups.index[0]
    if groups.grids[group] is None:
        groups.find(group, columns[: groups.size], scheme, layer)
    grid = groups.grids[group]
    assert grid is not None
    value = decode(encode(first, grid, scheme), grid, scheme)
    unit = torch.zeros_like(factor.root[:1])
    unit[0, 0] = 1
    # The first row of U = R^-1.
    row = torch.linalg.solve_triangular(factor.root, unit, upper=True, left=False)[0]
    error = (columns[0] - value) / row[0].to(columns.dtype)
    columns = columns.addcmul(row[:, None].to(columns.dtype), error, value=-1)
    columns[0] = value
    return columns, float(error.square().sum()) / 2


def plain_reason(kernel: str, scheme: Scheme) -> str | None:
    """Return why the plain column loop runs although a kernel was chosen; None if the kernel runs.

    It is recorded as Solution.fallback, so that tables mark the layer.
    """
    if kernel == "reference" or scheme.kind.loop_arguments is not None:
        return None
    return f"plain column loop: the {kernel} kernel does not support {scheme.kind.name} levels"


def _loop_over_panels(
    columns: Tensor,
    factor: Factor,
    groups: Groups,
    scheme: Scheme,
    panels: list[list[tuple[int, int]]],
    run: Columns,
    layer: str,
) -> tuple[Tensor, float]:
    codes = torch.empty_like(columns, dtype=torch.uint8)
    missing = torch.empty_like(columns) if len(panels) > 1 else columns  # errors d so far
    loss = torch.zeros((), dtype=columns.dtype, device=columns.device)
    for blocks in panels:
        start, end = blocks[0][0], blocks[-1][1]
        if start:
            upper, back = factor.panel(start, end, columns.dtype)
            # The columns after the updates of all columns before them.
            panel = columns[start:end] + product(back, missing[:start])
        else:
            upper = factor.upper if len(panels) == 1 else factor.inverse(start, end)
            upper, panel = upper.to(columns.dtype), columns[:end].clone()
        for first, last in blocks:
            block, inner = panel[first - start :], upper[first - start :, first - start :]
            found, errors = _loop_over_block(
                block, last - first, inner, groups, first, scheme, run, layer
            )
            codes[first:last] = found
            loss += errors.square().sum()
            later = last - first
            block[later:].addmm_(inner[:later, later:].T, errors, alpha=-1)
        if end < len(columns):
            torch.sub(columns[start:end], panel, out=missing[start:end])
    return codes, float(loss) / 2


def _loop_over_block(
    block: Tensor,
    count: int,
    upper: Tensor,
    groups: Groups,
    first: int,
    scheme: Scheme,
    run: Columns,
    layer: str,
) -> tuple[Tensor, Tensor]:
    """Quantize the first `count` rows of block [columns, out], from step `first` of the loop on.

    These rows are replaced by their quantized values. Later rows are read (a group may extend
    beyond the block) but not updated. Returns codes and errors [count, out].
    """
    upper = upper[:count, :count]
    if groups.found:
        return run(block[:count], upper, *_grids(groups, first, first + count), scheme)
    size = groups.size
    began = block.clone() if groups.stale else block
    parts = []
    at = 0
    while at < count:
        group = groups.index[first + at]
        if groups.grids[group] is None:
            # _blocks never splits a group that begins inside a block, unless grids are stale.
            groups.find(group, began[at : at + size], scheme, layer)
        end = min((first + at) // size * size + size - first, count)
        grids, index = _grids(groups, first + at, first + end)
        parts.append(run(block[at:count], upper[at:, at:], grids, index, scheme))
        at = end
    if len(parts) == 1:
        return parts[0]
    codes, errors = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(errors)


def plain_columns(
    block: Tensor, upper: Tensor, grids: Grid, index: list[int], scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """The oracle of cuda_ext.column_loop.gptq_column_loop: plain PyTorch, any dtype and device."""
    codes = torch.empty_like(block[: len(index)], dtype=torch.uint8)
    # Contiguous, as the operator's errors are: with one row, empty_like takes over strides with
    # which addmm_ sums in another order.
    errors = block.new_empty((len(index), block.shape[1]))
    diagonal = upper.diagonal()
    rows = [grids.apply(lambda part, at=at: part[at]) for at in range(len(grids))]  # type: ignore[misc]
    for j, group in enumerate(index):
        column, grid = block[j], rows[group]
        code = encode(column, grid, scheme)
        codes[j] = code
        value = decode(code, grid, scheme)
        error = torch.div(column - value, diagonal[j], out=errors[j])
        column.copy_(value)
        # On CPUs addcmul_ is a fused multiply-add in every row; addr_ fuses only some rows.
        block[j + 1 :].addcmul_(upper[j, j + 1 :, None], error, value=-1)
    return codes, errors


def fused_columns(
    block: Tensor, upper: Tensor, grids: Grid, index: list[int], scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """The same as plain_columns by the operator of cuda_ext, in float32 on its devices."""
    arguments = scheme.kind.loop_arguments
    assert arguments is not None
    group = None
    if len(grids) > 1:
        group = torch.tensor(index, dtype=torch.int32, device=block.device)
    return gptq_column_loop(
        block,
        upper,
        **arguments(grids.tensors),
        group=group,
        count=len(index),
        max_code=scheme.max_code,
    )


def _grids(groups: Groups, first: int, end: int) -> tuple[Grid, list[int]]:
    """Return the grids of steps first .. end, and each step's index among these grids."""
    used = groups.index[first:end]
    names = sorted(set(used))
    position = {name: at for at, name in enumerate(names)}
    return stack_grids([groups.grids[name] for name in names]), [position[name] for name in used]


def _blocks(columns: int, block_size: int, group_size: int | None) -> list[tuple[int, int]]:
    """Return (begin, end) of the lazy blocks: block_size columns each.

    If group_size (columns whose grids are found at once) is given, a block ends early instead of
    splitting a group that began inside it, so that the group is up to date when its grid is found.
    The last group ends at the last column.
    """
    blocks = []
    start = 0
    while start < columns:
        end = min(start + block_size, columns)
        if group_size is not None and start < end // group_size * group_size and end < columns:
            end = end // group_size * group_size
        blocks.append((start, end))
        start = end
    return blocks


def _panels(blocks: list[tuple[int, int]], group_size: int | None) -> list[list[tuple[int, int]]]:
    """Join blocks into panels of at least PANEL columns (except the last) that split no group."""
    panels: list[list[tuple[int, int]]] = [[]]
    for block in blocks:
        panels[-1].append(block)
        end = block[1]
        if end - panels[-1][0][0] >= PANEL and (group_size is None or end % group_size == 0):
            panels.append([])
    return [panel for panel in panels if panel]
