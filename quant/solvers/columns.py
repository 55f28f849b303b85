"""GPTQ's loop over the columns of a layer: Algorithm 1 of the paper, and the same by panels.

Both quantize column j, divide its error by U_jj and subtract the error times U_jk from the later
columns k (H^-1 = U^T U, arXiv 2210.17323, equations 2 and 3). kernel="reference" is Algorithm 1 to
the letter: columns of a block in a plain loop, and a lazy update of everything behind the block.

The compiled kernels need no inverse of the whole Hessian. With H = R R^T (R upper triangular, so
U = R^-1) and d_i = w_i - q_i the error that column i was left with, the weights of a panel P that
begins at column s are, after all the updates of the columns before it,

    w'_P = w_P + d_{<s} R_{<s,P} U_PP,    U_PP = (R_PP)^-1,

the minimum of d H d^T over the columns from s on. So a panel looks back once, in two long matrix
products, instead of being updated after every block before it; inside a panel Algorithm 1 runs with
U_PP. In exact arithmetic that is the same; in float32 it rounds differently, no worse (tests hold
both against the float64 oracle), and it saves the inverse: two thirds of the factorization's work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cuda_ext.column_loop import gptq_column_loop
from quant.grid import Grid, decode, encode, find_groups, stack_grids
from quant.hessian import Factor
from quant.products import product
from quant.scheme import Scheme
from quant.tiling import PANEL

# (block [columns, rows], upper, grids [groups, rows], group of each step, scheme) -> codes, errors
Columns = Callable[[Tensor, Tensor, Grid, list[int], Scheme], tuple[Tensor, Tensor]]


@dataclass
class Groups:
    """The groups of a layer's columns.

    grids   of each group, its tensors [rows]; None until the loop has found it.
    index   the group of every step of the loop.
    stale   grids come from the weights as they were when the current block began.
    size    columns whose grids are found at once, groups of them; the last may have fewer.
    """

    grids: list[Grid | None]
    index: list[int]
    stale: bool
    size: int

    @property
    def found(self) -> bool:
        """Every grid is known; else groups are neighbours in the loop."""
        return all(grid is not None for grid in self.grids)

    def find(self, group: int, columns: Tensor, scheme: Scheme, layer: str) -> None:
        """The grids of the groups that columns [columns, rows] are, from `group` on."""
        grids = find_groups(columns.T, scheme, layer)
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
    """Codes uint8 [in, out] and the loss of columns [in, out], both in the loop's order.

    A column of the weight is a row here: contiguous, as everything in the loop is per column.
    kernel is "reference", "cpu" or "cuda"; float64, which no kernel has, keeps the plain loop
    inside the panels, and so do levels without a compiled loop (`plain_reason`). Fills in the
    grids that are not found yet.
    """
    size = None if groups.found else groups.size
    blocks = _blocks(len(columns), block_size, None if groups.stale else size)
    whole = kernel == "reference"
    fused = not whole and columns.dtype == torch.float32 and scheme.kind.loop_arguments is not None
    panels = [blocks] if whole else _panels(blocks, size)
    return _loop_over_panels(
        columns, factor, groups, scheme, panels, fused_columns if fused else plain_columns, layer
    )


def plain_reason(kernel: str, scheme: Scheme) -> str | None:
    """Why the columns are quantized in a plain loop although a kernel is there; None: they are not.

    A sentence for Solution.fallback, so that every table marks such a layer.
    """
    if kernel == "reference" or scheme.kind.loop_arguments is not None:
        return None
    return f"plain column loop: the {kernel} kernel has none for {scheme.kind.name} levels"


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
    missing = torch.empty_like(columns) if len(panels) > 1 else columns  # d of the finished columns
    loss = torch.zeros((), dtype=columns.dtype, device=columns.device)
    for blocks in panels:
        start, end = blocks[0][0], blocks[-1][1]
        upper = factor.upper if len(panels) == 1 else factor.inverse(start, end)
        upper = upper.to(columns.dtype)
        panel = columns[start:end]
        panel = _look_back(columns, missing, factor, start, upper) if start else panel.clone()
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


def _look_back(
    columns: Tensor, missing: Tensor, factor: Factor, start: int, upper: Tensor
) -> Tensor:
    """The columns of a panel, from `start` on, after the updates of all columns before it."""
    end = start + len(upper)
    back = factor.root[:start, start:end].to(columns.dtype)
    return columns[start:end] + product(product(upper.T, back.T), missing[:start])


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

    They become their values; what comes after them is read (a group may reach beyond the block) but
    not updated. Returns codes and errors [count, out].
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
            # _blocks never cuts a group that begins inside a block, unless grids are stale.
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
    """cuda_ext.column_loop.gptq_column_loop in plain PyTorch, any dtype and device: its oracle."""
    codes = torch.empty_like(block[: len(index)], dtype=torch.uint8)
    errors = torch.empty_like(block[: len(index)])
    diagonal = upper.diagonal()
    rows = [grids.apply(lambda part, at=at: part[at]) for at in range(len(grids))]  # type: ignore[misc]
    for j, group in enumerate(index):
        column, grid = block[j], rows[group]
        code = encode(column, grid, scheme)
        codes[j] = code
        value = decode(code, grid, scheme)
        error = torch.div(column - value, diagonal[j], out=errors[j])
        column.copy_(value)
        # On CPUs addcmul_ rounds once (a fused product) for every row alike; addr_ only for some.
        block[j + 1 :].addcmul_(upper[j, j + 1 :, None], error, value=-1)
    return codes, errors


def fused_columns(
    block: Tensor, upper: Tensor, grids: Grid, index: list[int], scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """The same by the operator of cuda_ext, float32 on its devices."""
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
    """The grids of steps first .. end, and the index of each step's among them."""
    used = groups.index[first:end]
    names = sorted(set(used))
    position = {name: at for at, name in enumerate(names)}
    return stack_grids([groups.grids[name] for name in names]), [position[name] for name in used]


def _blocks(columns: int, block_size: int, group_size: int | None) -> list[tuple[int, int]]:
    """Where lazy blocks begin and end: every block_size columns.

    With a group_size (columns whose grids are found at once) a block ends early rather than in the
    middle of a group that began inside it, so that such a group is up to date when its grid is
    found. The last group is whole with the last column.
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
    """Runs of blocks, at least PANEL columns each (but the last), that cut no group in two."""
    panels: list[list[tuple[int, int]]] = [[]]
    for block in blocks:
        panels[-1].append(block)
        end = block[1]
        if end - panels[-1][0][0] >= PANEL and (group_size is None or end % group_size == 0):
            panels.append([])
    return [panel for panel in panels if panel]
