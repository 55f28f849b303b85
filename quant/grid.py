"""Grids: the scale and zero-point of every row, and the codes that weights get on them.

The quantizer of the paper (arXiv 2210.17323, section 4 "Setup", and the authors' code): uniform,
asymmetric min-max, one grid a row; plus symmetric, MSE-searched and ternary grids. A group of
columns is quantized by handing in just these columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.errors import NonFiniteError, QuantizationError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

# grid="mse" tries these shares of the full range: 1.00, 0.98, ... 0.22. The smallest one is below
# the best clipping of 2-bit codes on a row of 16384 Gaussian weights (0.37).
MSE_SHRINK = tuple((50 - step) / 50 for step in range(40))

# float16 keeps scales below its smallest normal number as multiples of this step.
FLOAT16_STEP = 2.0**-24


@dataclass(frozen=True)
class Grid:
    """One grid for each of `rows` rows, in the dtype that the weights are computed in.

    scale           [rows], exactly representable in scheme.scale_dtype, > 0 (ternary: >= 0, the
                    value of code 2).
    zero            [rows], whole numbers 0 .. max_code; None for ternary.
    negative_scale  [rows], ternary only: the magnitude of code 0.
    """

    scale: Tensor
    zero: Tensor | None = None
    negative_scale: Tensor | None = None


def find_grid(weight: Tensor, scheme: Scheme, layer: str = "this layer") -> Grid:
    """The grid of every row of weight [rows, columns], computed in float32 (float64 if given).

    The range is forced to hold 0, so 0 is exact on every grid; a row of zeros gets [-1, 1].
    Symmetric grids span [-max|w|, max|w|] with the zero-point at 2^(bits-1). Scales are rounded to
    scheme.scale_dtype first and zero-points follow from the rounded scale. Raises NonFiniteError
    for weights that are not finite and QuantizationError for scales beyond scheme.scale_dtype.
    """
    weight = working(weight)
    low = weight.amin(dim=1).clamp_(max=0)
    high = weight.amax(dim=1).clamp_(min=0)
    if scheme.ternary:
        negative = _round_scale(-low, scheme, layer)
        return Grid(_round_scale(high, scheme, layer), negative_scale=negative)
    if scheme.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    empty = high == low
    low = torch.where(empty, -1.0, low)
    high = torch.where(empty, 1.0, high)
    grid = _uniform_grid(low, high, scheme, layer)
    return _shrink(weight, grid, low, high, scheme, layer) if scheme.grid == "mse" else grid


def quantize(weight: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Codes uint8 [rows, columns] of the levels nearest to weight (half to even)."""
    return encode(working(weight).T, grid, scheme).T.to(torch.uint8).contiguous()


def dequantize(codes: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """The values [rows, columns] of codes, in the dtype of the grid (float32 as a rule)."""
    return decode(codes.T.to(grid.scale.dtype), grid, scheme).T.contiguous()


def encode(columns: Tensor, grid: Grid, scheme: Scheme) -> Tensor:
    """Codes, as floating-point numbers, of weights [..., rows]: columns first, rows last.

    Solvers sweep over columns, and in this layout a column is contiguous. Ternary weights beyond
    half of an outer level take that level, the others 0.
    """
    if grid.negative_scale is not None:
        above = (columns > grid.scale / 2).to(columns.dtype)
        return above.sub_((columns < grid.negative_scale / -2).to(columns.dtype)).add_(1)
    assert grid.zero is not None
    return (columns / grid.scale).round_().add_(grid.zero).clamp_(0, scheme.max_code)


def decode(codes: Tensor, grid: Grid, scheme: Scheme) -> Tensor:  # noqa: ARG001
    """The values of floating-point codes [..., rows]; inverse of encode on the grid's levels."""
    if grid.negative_scale is not None:
        level = codes - 1
        return level.clamp(min=0) * grid.scale + level.clamp(max=0) * grid.negative_scale
    assert grid.zero is not None
    return (codes - grid.zero).mul_(grid.scale)


def assemble(
    codes: Tensor, grid: Grid, scheme: Scheme, group_index: Tensor | None = None
) -> QuantizedWeight:
    """codes uint8 [out, in] and their grid as a QuantizedWeight.

    grid has out * groups rows, the groups of one output row beside each other.
    """
    outputs, inputs = codes.shape
    shape = (outputs, scheme.groups(inputs))
    dtype = getattr(torch, scheme.scale_dtype)
    zero, negative = grid.zero, grid.negative_scale
    return QuantizedWeight(
        codes=codes,
        scale=grid.scale.reshape(shape).to(dtype),
        zero=None if zero is None else zero.reshape(shape).to(torch.uint8),
        scheme=scheme,
        negative_scale=None if negative is None else negative.reshape(shape).to(dtype),
        group_index=group_index,
    )


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


def _uniform_grid(low: Tensor, high: Tensor, scheme: Scheme, layer: str) -> Grid:
    scale = _round_scale((high - low) / scheme.max_code, scheme, layer)
    if scheme.symmetric:
        return Grid(scale, torch.full_like(scale, 2 ** (scheme.bits - 1)))
    return Grid(scale, (-low / scale).round_().clamp_(0, scheme.max_code))


def _round_scale(scale: Tensor, scheme: Scheme, layer: str) -> Tensor:
    """scale as scheme.scale_dtype holds it, refusing what it cannot hold.

    Below the smallest normal number of float16 (rows with tiny weights at 8 bits get there) the
    rounding is relative no more: nearest could cut off a third of the range or give 0. There the
    next multiple of 2^-24 above is taken, so the grid always covers the row. The scale of a
    uniform grid is never 0; an outer level of a ternary grid may be.
    """
    stored = getattr(torch, scheme.scale_dtype)
    single = scale.float()  # so that float64 takes the same road: torch goes over float32 anyway
    rounded = single.to(stored).float()
    if not torch.isfinite(rounded).all():
        _refuse_scale(scale, rounded, scheme, layer)
    smallest = torch.finfo(stored).tiny
    if scheme.scale_dtype == "float16":
        upward = (single / FLOAT16_STEP).ceil_().mul_(FLOAT16_STEP)
        rounded = torch.where(single < smallest, upward, rounded)
        smallest = FLOAT16_STEP
    return (rounded if scheme.ternary else rounded.clamp_(min=smallest)).to(scale.dtype)


def _refuse_scale(scale: Tensor, rounded: Tensor, scheme: Scheme, layer: str) -> None:
    layer = layer or "this layer"
    row = int((~torch.isfinite(rounded)).nonzero()[0, 0])
    value = float(scale[row])
    if value != value or value == float("inf"):
        raise NonFiniteError(
            f"{layer}: the weights of grid row {row} are NaN, infinite or span more than float32 "
            "holds; look for non-finite values in the checkpoint and in the calibration data."
        )
    raise QuantizationError(
        f"{layer}: the scale of grid row {row} is {value:.4g}, more than {scheme.scale_dtype} "
        "holds; use scale_dtype=bfloat16 or float32."
    )


def _shrink(
    weight: Tensor, grid: Grid, low: Tensor, high: Tensor, scheme: Scheme, layer: str
) -> Grid:
    """For every row the range out of MSE_SHRINK * [low, high] of smallest squared error.

    The full range, tried first, wins ties. Both ends shrink together, as in the authors' code
    (with the square in place of their exponent 2.4).
    """
    columns = weight.T
    assert grid.zero is not None
    best_scale, best_zero = grid.scale, grid.zero
    best_error = torch.full_like(best_scale, float("inf"))
    for share in MSE_SHRINK:
        candidate = _uniform_grid(low * share, high * share, scheme, layer)
        value = decode(encode(columns, candidate, scheme), candidate, scheme)
        error = value.sub_(columns).square_().sum(dim=0)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, candidate.scale, best_scale)
        assert candidate.zero is not None
        best_zero = torch.where(better, candidate.zero, best_zero)
    return Grid(best_scale, best_zero)
