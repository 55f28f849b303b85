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

STEPS = 64  # columns that leave the rows' inverses together
# Rows are solved together: as many as have this many numbers in their inverses, but LEAST_ROWS.
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
    grid = find_groups(weight, scheme, layer.name)
    size = min(scheme.group_size or inputs, inputs)
    group = torch.arange(inputs, device=weight.device) // size
    inverse = prepared.upper.T @ prepared.upper
    codes = torch.empty(outputs, inputs, dtype=torch.uint8, device=weight.device)
    loss, step = 0.0, max(LEAST_ROWS, BATCH // inputs**2)
    for first in range(0, outputs, step):
        rows = slice(first, first + step)
        grids = grid.apply(lambda part, rows=rows: part[rows])  # type: ignore[misc]
        low, high = _range(grids, scheme)
        # A grid for every weight, because each row takes its weights in an order of its own.
        part = _Left(
            weight[rows].clone(),
            torch.arange(inputs, device=weight.device).expand(len(low), inputs),
            grids.apply(lambda part: part[:, group]),
            low[:, group],
            high[:, group],
        )
        codes[rows], cost = _greedy(part, inverse, scheme, options)
        loss += cost
    quantized = assemble(codes, grid, scheme)
    return Solution(quantized, finite_loss(loss, "OBQ", layer.name), prepared.damping, dead)


@dataclass(frozen=True)
class _Left:
    """The inputs of some rows that are left when STEPS of them begin; the front of each row.

    weight     [rows, left], with all updates so far.
    place      int64 [rows, left], the input that each of them is.
    grids      one for every weight.
    low, high  [rows, left], the range of every grid.
    """

    weight: Tensor
    place: Tensor
    grids: Grid
    low: Tensor
    high: Tensor

    def front(self, targets: Tensor, sources: Tensor, left: int) -> _Left:
        """Return the entries that are left, as `_front` does of each."""

        def keep(tensor: Tensor) -> Tensor:
            return _front(tensor, targets, sources, left)

        low, high = keep(self.low), keep(self.high)
        return _Left(keep(self.weight), keep(self.place), self.grids.apply(keep), low, high)


def _greedy(
    part: _Left, inverse: Tensor, scheme: Scheme, options: Options
) -> tuple[Tensor, float]:
    """Return codes uint8 [rows, in] of all inputs and their loss; part.weight is overwritten.

    inverse  H^-1 [in, in].
    """
    import torch

    rows, inputs = part.weight.shape
    codes = torch.empty_like(part.weight, dtype=torch.uint8)
    inverses = inverse.expand(rows, inputs, inputs).clone()
    loss, left = 0.0, inputs
    while left:
        inner = inverses[:, :left, :left]
        count = min(STEPS, left)
        collected, gone, cost = _eliminate(part, inner, codes, count, scheme, options)
        loss += cost
        left -= count
        if left:
            targets, sources = _moves(gone, left)
            part = part.front(targets, sources, left)
            collected = _front(collected.mT, targets, sources, left)
            _move(inner, targets, sources)
            _move(inner.mT, targets, sources)
            inner[:, :left, :left].baddbmm_(collected, collected.mT, alpha=-1)
    return codes, loss


def _eliminate(
    part: _Left, inverses: Tensor, codes: Tensor, count: int, scheme: Scheme, options: Options
) -> tuple[Tensor, Tensor, float]:
    """Round `count` weights of each row into codes [rows, in], in the order that costs least.

    inverses  V [rows, left, left], read but not changed; part.weight is.
    Returns the collected columns u [rows, count, left], which inputs are gone, and the loss.
    """
    import torch

    weight = part.weight
    rows, left = weight.shape
    each = torch.arange(rows, device=weight.device)
    diagonal = inverses.diagonal(dim1=1, dim2=2).clone()
    collected = weight.new_empty(rows, count, left)
    gone = torch.zeros_like(weight, dtype=torch.bool)
    costs = weight.new_zeros(rows)
    for step in range(count):
        nearest, error = _round(weight, part.grids, scheme)
        order = cost = error.square().div_(diagonal)
        if options.outliers_first:
            beyond = (weight < part.low) | (weight > part.high)
            order = torch.where(beyond, error.abs().neg_(), cost)
        chosen = order.masked_fill(gone, math.inf).argmin(1)
        codes[each, part.place[each, chosen]] = nearest[each, chosen].to(torch.uint8)
        costs += cost[each, chosen]
        gone[each, chosen] = True
        column = inverses[each, chosen]
        if step:
            before = collected[:, :step]
            column[:, None].baddbmm_(before[each, :, chosen][:, None], before, alpha=-1)
        root = diagonal[each, chosen].sqrt_()
        column.div_(root[:, None])
        collected[:, step] = column
        weight.addcmul_(column, (error[each, chosen] / root)[:, None], value=-1)
        diagonal.addcmul_(column, column, value=-1)
    return collected, gone, float(costs.sum(dtype=torch.float64)) / 2


def _round(weight: Tensor, grids: Grid, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the nearest codes and w - q of weight [rows, left]."""
    from quant.grid import decode, encode

    flat = grids.apply(lambda part: part.flatten(0, 1))
    codes = encode(weight.flatten(), flat, scheme)
    values = decode(codes.clone(), flat, scheme)
    return codes.view_as(weight), weight - values.view_as(weight)


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
    """Return which of the first `left` inputs are gone, and the later ones that take their places.

    Both are int64 [rows, moves]. Where fewer are gone than others move, an input takes its own
    place.
    """
    import torch

    moves = min(gone.shape[1] - left, left)
    targets = gone[:, :left].byte().argsort(dim=1, descending=True, stable=True)[:, :moves]
    later = left + gone[:, left:].byte().argsort(dim=1, stable=True)[:, :moves]
    return targets, torch.where(gone.gather(1, targets), later, targets)


def _move(tensor: Tensor, targets: Tensor, sources: Tensor) -> None:
    """Copy entries `sources` of tensor [rows, inputs, ...] to `targets`."""
    import torch

    each = torch.arange(len(tensor), device=tensor.device)[:, None]
    tensor[each, targets] = tensor[each, sources]


def _front(tensor: Tensor, targets: Tensor, sources: Tensor, left: int) -> Tensor:
    """Return tensor [rows, left, ...] of the entries that are left."""
    import torch

    each = torch.arange(len(tensor), device=tensor.device)[:, None]
    front = tensor[:, :left].contiguous()
    front[each, targets] = tensor[each, sources]
    return front


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
    prepare=prepare,
    # The factor, its inverse and H^-1; then the inverses of LEAST_ROWS rows and their change.
    memory=Memory(weights=6, prepared=3 + 2 * LEAST_ROWS, preparing=5),
    version=2,
    describe=describe,
)
