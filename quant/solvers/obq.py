"""OBQ, the exact greedy solver (arXiv 2208.11580): every row in the order that costs least.

The step of GPTQ is the same, but its order of columns is fixed and common to all rows. Here each
row takes the weight whose rounding raises the error least, given the weights that were rounded
before, so each row needs an inverse Hessian of its own: inputs^3 operations a row, for small
layers and as a reference.

Rounding input c of a row takes its column out of the row's inverse V (equations 2 and 3 of arXiv
2210.17323):

    u = V_c / sqrt(V_cc),    w' = w - (w_c - q_c) / sqrt(V_cc) u,    V' = V - u u^T

Changing V at every step would move all of it through memory. Its diagonal and the weights are
changed at once, since every choice reads them; the columns u are collected, the one column of V
that a step reads is computed from them, and STEPS of them leave V together, as one product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory, Solution, Solver, begin, finite_loss

if TYPE_CHECKING:
    from torch import Tensor

    from quant.grid import Grid
    from quant.hessian import Factor
    from quant.scheme import Scheme

# Columns that leave the rows' inverses together. Measured: 24 to 96 are within 10 % of each other.
STEPS = 32
# Numbers in the inverses and columns of the rows that are solved together, but at least LEAST_ROWS:
# fewer rows spend their time between the operators.
BATCH = 2**24
LEAST_ROWS = 16


@dataclass(frozen=True)
class Options:
    """Options of OBQ.

    damping         share of the mean of the Hessian's diagonal that is added to it.
    outliers_first  round a weight that left the range of its grid at once, as the authors of OBQ
                    do: later, fewer weights could make up for it.
    """

    damping: float = 0.01
    outliers_first: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping={self.damping} is not 0 or more; 0.01 is usual.")


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def prepare(
    hessian: Tensor, options: Options = DEFAULT_OPTIONS, layer: Layer = ANY_LAYER
) -> Factor:
    """Damp and factor H [in, in] for all layers with the same inputs."""
    from quant.hessian import factorize

    return factorize(hessian, options.damping, layer=layer.name, tokens=layer.tokens)


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: Factor,
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Quantize weight [out, in] greedily; grids are found on the weights as they are at first.

    Computes in float32, or in float64 if weight or Hessian is. Weights of dead inputs are set to 0.
    Raises NonFiniteError, SingularHessianError and QuantizationError, which name the layer.
    """
    import torch

    from quant.grid import assemble, find_groups

    weight, dead = begin(weight, prepared, options.damping, False, layer.name)
    outputs, inputs = weight.shape
    grid = find_groups(weight, scheme, layer.name, prepared.block)
    size = min(scheme.group_size or inputs, inputs)
    group = torch.arange(inputs, device=weight.device) // size
    inverse = prepared.upper.T @ prepared.upper
    codes = torch.empty(outputs, inputs, dtype=torch.uint8, device=weight.device)
    many = min(outputs, max(LEAST_ROWS, BATCH // (inputs * (inputs + STEPS))))
    room = weight.new_empty(many, inputs + STEPS, inputs)
    loss = 0.0
    for first in range(0, outputs, many):
        rows = slice(first, first + many)
        grids = grid.apply(lambda part, rows=rows: part[rows])  # type: ignore[misc]
        low, high = _range(grids, scheme)
        # A grid for every weight, because each row takes its weights in an order of its own.
        part = _Left(
            weight[rows].clone(memory_format=torch.contiguous_format),
            torch.arange(inputs, device=weight.device).repeat(len(low), 1),
            grids.apply(lambda part: part[:, group]),
            low[:, group],
            high[:, group],
        )
        codes[rows], cost = _greedy(part, inverse, room[: len(low)], scheme, options)
        loss += cost
    quantized = assemble(codes, grid, scheme)
    return Solution(quantized, finite_loss(loss, "OBQ", layer.name), prepared.damping, dead)


@dataclass(frozen=True)
class _Left:
    """What is left of some rows when STEPS of their inputs begin: [rows, left] each.

    weight     with all updates so far.
    place      int64, the input that it is.
    grids      one for every weight.
    low, high  the range of every grid.
    """

    weight: Tensor
    place: Tensor
    grids: Grid
    low: Tensor
    high: Tensor

    def front(self, targets: Tensor, sources: Tensor, left: int) -> _Left:
        """Return the first `left` after `_move`."""

        def keep(tensor: Tensor) -> Tensor:
            _move(tensor, targets, sources)
            return tensor[:, :left].contiguous()

        low, high = keep(self.low), keep(self.high)
        return _Left(keep(self.weight), keep(self.place), self.grids.apply(keep), low, high)


def _greedy(
    part: _Left, inverse: Tensor, room: Tensor, scheme: Scheme, options: Options
) -> tuple[Tensor, float]:
    """Return codes uint8 [rows, in] of all inputs and their loss; `part` is overwritten.

    inverse  H^-1 [in, in].
    room     [rows, in + STEPS, in], memory for the inverses and the collected columns.
    """
    import torch

    inputs = part.weight.shape[1]
    codes = torch.empty_like(part.weight, dtype=torch.uint8)
    inverses, collected = room[:, :inputs], room[:, inputs:]
    inverses.copy_(inverse)
    loss, left = 0.0, inputs
    while left:
        inner, count = inverses[:, :left, :left], min(STEPS, left)
        columns = collected[:, :count, :left]
        chosen, found, cost = _eliminate(part, inner, columns, scheme, options)
        codes.scatter_(1, part.place.gather(1, chosen), found)
        loss += cost
        left -= count
        if left:
            targets, sources = _moves(chosen, left)
            part = part.front(targets, sources, left)
            for tensor in (inner, inner.mT, columns.mT):
                _move(tensor, targets, sources)
            columns = columns[:, :, :left]
            inner[:, :left, :left].baddbmm_(columns.mT, columns, alpha=-1)
    return codes, loss


def _eliminate(
    part: _Left, inverses: Tensor, columns: Tensor, scheme: Scheme, options: Options
) -> tuple[Tensor, Tensor, float]:
    """Round as many weights of each row as there are columns, in the order that costs least.

    inverses  V [rows, left, left], not changed; part.weight is.
    columns   [rows, count, left], receives the columns u.
    Returns which were rounded, int64 [rows, count], their codes, uint8, and the loss.
    """
    import torch

    from quant.grid import decode, encode

    weight, (rows, count) = part.weight, columns.shape[:2]
    each = torch.arange(rows, device=weight.device)[:, None]
    diagonal = inverses.diagonal(dim1=1, dim2=2).clone()
    gone = torch.zeros_like(weight, dtype=torch.bool)
    flat, grids = weight.view(-1), part.grids.apply(lambda each: each.flatten(0, 1))
    picks, found, steps = [], [], []
    for step in range(count):
        codes = encode(flat, grids, scheme)
        error = weight - decode(codes.clone(), grids, scheme).view_as(weight)
        order = error.square().div_(diagonal)
        if options.outliers_first:
            beyond = weight != weight.clamp(part.low, part.high)
            order = torch.where(beyond, error.abs().neg_(), order)
        pick = order.masked_fill_(gone, math.inf).argmin(1, keepdim=True)
        gone.scatter_(1, pick, True)
        column = inverses[each, pick]  # [rows, 1, left]
        if step:
            before = columns[:, :step]
            share = before.gather(2, pick[:, :, None].expand(rows, step, 1))
            column.baddbmm_(share.mT, before, alpha=-1)
        root = diagonal.gather(1, pick).sqrt_()
        change = error.gather(1, pick).div_(root)
        column = torch.div(column[:, 0], root, out=columns[:, step])
        weight.addcmul_(column, change, value=-1)
        diagonal.addcmul_(column, column, value=-1)
        picks.append(pick)
        found.append(codes.view_as(weight).gather(1, pick))
        steps.append(change)
    loss = float(torch.cat(steps).square().sum(dtype=torch.float64)) / 2
    return torch.cat(picks, 1), torch.cat(found, 1).byte(), loss


def _range(grid: Grid, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the ends [rows, groups] of the grids: half a step beyond their outer levels."""
    import torch

    from quant.grid import decode

    flat = grid.apply(lambda part: part.flatten(0, 1))
    first = next(iter(grid.tensors.values()))
    shape = first.shape[:2]
    every = [
        decode(first.new_full((shape.numel(),), code), flat, scheme)
        for code in range(scheme.max_code + 1)
    ]
    levels = torch.stack(every).sort(0).values
    # Rounding of the range itself may exceed half a step a little.
    low = levels[0] - 0.51 * (levels[1] - levels[0])
    high = levels[-1] + 0.51 * (levels[-1] - levels[-2])
    return low.view(shape), high.view(shape)


def _moves(gone: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Return what fills the places of inputs `gone` among the first `left`: those left beyond.

    All are int64 [rows, moves]: targets and sources. Where fewer are gone than could move, an input
    moves to its own place.
    """
    import torch

    rows, count = gone.shape
    here = torch.ones(rows, left + count, dtype=torch.uint8, device=gone.device)
    here.scatter_(1, gone, 0)
    moves = min(count, left)
    targets = here[:, :left].argsort(dim=1, stable=True)[:, :moves]
    later = left + here[:, left:].argsort(dim=1, descending=True, stable=True)[:, :moves]
    return targets, torch.where(here.gather(1, targets) == 0, later, targets)


def _move(tensor: Tensor, targets: Tensor, sources: Tensor) -> None:
    """Copy entries `sources` of tensor [rows, inputs, ...] to `targets`."""
    import torch

    each = torch.arange(len(tensor), device=tensor.device)[:, None]
    tensor[each, targets] = tensor[each, sources]


def oracle(
    weight: Tensor, scheme: Scheme, hessian: Tensor, damping: float, options: Options
) -> Tensor:
    """Every step on its own: all levels tried, and all of every row's inverse changed."""
    import torch

    from quant.grid import decode, find_groups
    from quant.solvers import textbook

    wide = textbook.damped(hessian, damping)
    left = weight.masked_fill(hessian.diagonal() == 0, 0)
    outputs, inputs = left.shape
    grids = find_groups(left, scheme, hessian=lambda part: wide[part, part])
    group = torch.arange(inputs, device=left.device) // (scheme.group_size or inputs)
    every = grids.apply(lambda part: part[:, group].flatten(0, 1))
    codes = torch.arange(scheme.max_code + 1, dtype=left.dtype, device=left.device)
    levels = torch.stack([decode(code.expand(left.numel()), every, scheme) for code in codes])
    levels = levels.sort(0).values.view(-1, outputs, inputs)
    low = levels[0] - 0.51 * (levels[1] - levels[0])
    high = levels[-1] + 0.51 * (levels[-1] - levels[-2])
    inverse = torch.linalg.inv(wide).repeat(outputs, 1, 1)
    done = torch.zeros_like(left, dtype=torch.bool)
    row = torch.arange(outputs, device=left.device)
    values = torch.zeros_like(left)
    for _ in range(inputs):
        nearest = textbook.nearest(left.flatten(), every, scheme).view_as(left)
        error = left - nearest
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        cost = error.square() / diagonal
        if options.outliers_first:
            cost = torch.where((left < low) | (left > high), -error.abs(), cost)
        pick = cost.masked_fill(done, math.inf).argmin(1)
        values[row, pick], done[row, pick] = nearest[row, pick], True
        column, corner = inverse[row, pick].clone(), diagonal[row, pick].clone()
        left = left - (error[row, pick] / corner)[:, None] * column
        inverse -= column[:, :, None] * column[:, None] / corner[:, None, None]
    return values


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    words = []
    if options.damping != DEFAULT_OPTIONS.damping:
        words.append(f"damp {options.damping}")
    if not options.outliers_first:
        words.append("outliers in turn")
    return words


SOLVER = Solver(
    name="obq",
    label="OBQ",
    solve=solve,
    options=Options,
    needs_calibration=True,
    searches_with_hessian=True,
    prepare=prepare,
    # The factor, its inverse and H^-1; then LEAST_ROWS inverses with their columns, or BATCH.
    memory=Memory(weights=6, prepared=3 + LEAST_ROWS + 1, preparing=5, beside=BATCH),
    version=2,
    describe=describe,
    oracle=oracle,
)
