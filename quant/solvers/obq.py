"""OBQ, the exact greedy solver (arXiv 2208.11580): every row in the order that costs least.

The step of GPTQ is the same, but its order of columns is fixed and common to all rows. Here each
row takes the weight whose rounding raises the error least, given the weights that were rounded
before, so each row needs an inverse Hessian of its own: inputs^3 operations a row, for small
layers and as a reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.grid import Grid
    from quant.hessian import Factor
    from quant.scheme import Scheme

# Numbers in the inverse Hessians of the rows that are solved together: few fit into a processor's
# cache, many keep a GPU busy.
BATCH = {"cuda": 2**26, "cpu": 2**22}
LEAST_ROWS = 4


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

    from quant.grid import assemble, check_finite, find_groups, working

    weight = weight.detach()
    check_finite(weight, layer.name)
    dtype = torch.promote_types(working(weight).dtype, prepared.root.dtype)
    weight = weight.to(dtype)
    dead = int(prepared.dead.sum())
    if dead:
        weight = weight.masked_fill(prepared.dead, 0)
    outputs, inputs = weight.shape
    grid = find_groups(weight, scheme, layer.name)
    size = min(scheme.group_size or inputs, inputs)
    group = torch.arange(inputs, device=weight.device) // size
    inverse = prepared.upper.T @ prepared.upper
    codes = torch.empty(outputs, inputs, dtype=torch.uint8, device=weight.device)
    batch = BATCH.get(weight.device.type, BATCH["cpu"])
    loss, step = 0.0, max(LEAST_ROWS, batch // inputs**2)
    for start in range(0, outputs, step):
        rows = slice(start, start + step)
        # A grid for every weight, because each row takes its weights in an order of its own.
        grids = grid.apply(lambda part, rows=rows: part[rows][:, group].clone())  # type: ignore[misc]
        codes[rows], part = _greedy(weight[rows].clone(), inverse, grids, scheme, options)
        loss += part
    return Solution(assemble(codes, grid, scheme), loss, prepared.damping, dead)


def _greedy(
    weight: Tensor, inverse: Tensor, grids: Grid, scheme: Scheme, options: Options
) -> tuple[Tensor, float]:
    """Return codes [rows, in] and their loss; weight [rows, in] and grids are overwritten.

    inverse  H^-1 [in, in].
    grids    one for every weight.
    """
    import torch

    rows, inputs = weight.shape
    each = torch.arange(rows, device=weight.device)
    inverses = inverse.expand(rows, inputs, inputs).clone()
    place = torch.arange(inputs, device=weight.device).repeat(rows, 1)
    codes = torch.empty_like(weight)
    loss = 0.0
    # The weights that are left lie at the front, so that each step works on as few as there are.
    for left in range(inputs, 0, -1):
        inner = inverses[:, :left, :left]
        front = grids.apply(lambda part, left=left: part[:, :left])  # type: ignore[misc]
        nearest, error, beyond = _round(weight[:, :left], front, scheme)
        diagonal = inner.diagonal(dim1=1, dim2=2)
        cost = error.square() / diagonal
        order = torch.where(beyond, -error.abs(), cost) if options.outliers_first else cost
        chosen = order.argmin(1)
        codes[each, place[each, chosen]] = nearest[each, chosen]
        loss += float(cost[each, chosen].sum()) / 2
        # Equations 2 and 3 of arXiv 2210.17323: the others make up for the error, and the chosen
        # input leaves the inverse.
        column = inner[each, chosen]
        scaled = column / diagonal[each, chosen, None]
        weight[:, :left] -= error[each, chosen, None] * scaled
        inner.addcmul_(scaled[:, :, None], column[:, None, :], value=-1)
        # The last one takes the place that became free.
        inner[each, chosen] = inner[:, -1].clone()
        inner[each, :, chosen] = inner[:, :, -1].clone()
        for tensor in (weight, place, *grids.tensors.values()):
            tensor[each, chosen] = tensor[:, left - 1].clone()
    return codes.to(torch.uint8), loss


def _round(weight: Tensor, grids: Grid, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nearest codes, w - q, and which weights lie beyond the range of their grid."""
    import torch

    from quant.grid import decode, encode

    flat = grids.apply(lambda part: part.reshape(-1, *part.shape[2:]))
    codes = encode(weight.reshape(-1), flat, scheme)
    values = decode(codes.clone(), flat, scheme)
    neighbour = decode(torch.where(codes > 0, codes - 1, codes + 1), flat, scheme)
    error = weight - values.view_as(weight)
    step = (values - neighbour).abs().view_as(weight)
    # Rounding of the range itself may exceed half a step a little.
    return codes.view_as(weight), error, error.abs() > 0.51 * step


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
    describe=describe,
)
