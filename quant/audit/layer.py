"""Audit one layer: its codes beside rounding and beside the solver, on the same grids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.audit.coordinates import Coordinates, find_coordinates
from quant.audit.grids import clipped, levels_used, rounded
from quant.audit.moments import Moments
from quant.audit.trials import FOLLOWED, Trials
from quant.weight import QuantizedWeight

# A code counts as rounding if its level is the nearest, or no further than this many steps from
# being it: producers divide by a scale before they round the scale to its stored type.
TIE = 0.01
TIE_OF_SCALE = 2**-8  # of the weight itself; half a unit in the last place of bfloat16
ERRORS = 3  # standard errors of a factor that a tie may be off by
EXACT = 0.995  # share of a column's codes that must be rounding for the column to be uncorrected


@dataclass(frozen=True)
class Evidence:
    """What the codes of one layer show. Errors are tr(E H E^T) / tr(W H W^T), with E = W - Q.

    weight_error      ||W - Q||_F / ||W||_F.
    cosine            of W and Q as vectors; near 0 for weights that have nothing in common.
    error             of the checkpoint's codes.
    rounding_error    of the nearest levels of its grids.
    solver_error      of GPTQ on its grids, in the column order that is better on a sample of rows.
    rounded           share of its codes that are the nearest levels.
    solver_rounded    the same share of the solver's codes.
    agreement         share of its codes that the solver has too, at the damping and order that fit
                      best on a sample of rows; `same_as` says which these are.
    followed          share of that sample's codes that this solver would choose where they are,
                      behind the layer's own codes in the columns before.
    order             "natural" or "act-order", if the first column of that order is uncorrected and
                      that of the other is not; None: not known.
    any_loop          the largest share `followed` of any loop tried on this text, weaker solvers
                      among them; `any_loop_as` names it. None: not asked, as the solver's does, or
                      no order is known.
    scaled            what was scaled before quantization (quant.audit.coordinates); None: nothing.
    clipped           share of weights that the grids cut off.
    levels, of_levels codes that occur, and codes that the scheme has.
    scale_spread      largest scale over the median scale of the layer; None without one.
    dead_columns      inputs that were 0 on all of the text.
    """

    weight_error: float
    cosine: float
    error: float
    rounding_error: float
    solver_error: float
    rounded: float
    solver_rounded: float
    agreement: float
    followed: float
    same_as: str
    order: str | None
    any_loop: float | None
    any_loop_as: str | None
    scaled: str | None
    clipped: float
    levels: int
    of_levels: int
    scale_spread: float | None
    dead_columns: int
    tokens: int
    rank: int
    condition: float

    @property
    def gain(self) -> float | None:
        """Share of the possible gain over rounding that the codes reached; None: nothing to gain.

        1 is the solver's error, 0 that of rounding, below 0 worse than rounding.
        """
        possible = self.rounding_error - self.solver_error
        if possible <= 0.01 * self.rounding_error:
            return None
        return (self.rounding_error - self.error) / possible


@dataclass(frozen=True)
class ErrorAlone:
    """What the values of a layer show that has no grid of single weights; fields as in Evidence."""

    weight_error: float
    cosine: float
    error: float
    scaled: str | None
    dead_columns: int
    tokens: int
    rank: int
    condition: float


def error_alone(
    weight: Tensor, values: Tensor, inputs: Moments, scaled: bool = True
) -> tuple[ErrorAlone, Coordinates]:
    """Hold the values of a layer [out, in] against its base weight [out, in] in float32.

    Returns their error, and the coordinates of both: the base's, unless they may be `scaled`.
    """
    coordinates = find_coordinates(weight, values) if scaled else Coordinates()
    base = coordinates.scaled(weight)
    inputs = inputs.of(coordinates)
    size = inputs.loss(base)
    found = ErrorAlone(
        weight_error=_norm(base - values) / (_norm(base) or 1.0),
        cosine=_cosine(base, values),
        error=inputs.loss(base - values) / size if size else 0.0,
        scaled=coordinates.words,
        dead_columns=int((inputs.matrix.diagonal() == 0).sum()),
        tokens=inputs.tokens,
        rank=inputs.rank,
        condition=inputs.condition,
    )
    return found, coordinates


def audit_layer(
    weight: Tensor, found: QuantizedWeight, inputs: Moments, kernel: str, layer: str
) -> tuple[Evidence, QuantizedWeight, Coordinates]:
    """Hold the quantized weight of a layer against its base weight [out, in] in float32.

    Returns the evidence, the solver's codes on the checkpoint's grids, and the coordinates of both
    (`unscaled` of a dequantized weight is beside the base's). Raises SingularHessianError and
    CalibrationError for inputs that no solver could use.
    """
    quantized = found.dequantize()
    coordinates = find_coordinates(weight, quantized)
    scaled = coordinates.scaled(weight)
    inputs = inputs.of(coordinates)
    nearest = rounded(scaled, found).dequantize()
    size = inputs.loss(scaled)
    error = inputs.loss(scaled - quantized) / size if size else 0.0

    def error_of(values: Tensor) -> float:
        if torch.equal(values, quantized):  # a product that is known
            return error
        return inputs.loss(scaled - values) / size if size else 0.0

    trials = Trials(scaled, found, inputs, kernel, layer)
    better = trials.better()
    alike = trials.most_alike(better)
    values = better.dequantize()
    close = _is_rounding(scaled, quantized, nearest, coordinates.uncertainty)
    own = _is_rounding(scaled, values, nearest, coordinates.uncertainty)
    columns = close.float().mean(dim=0)
    order = _order(columns, inputs.matrix)
    loop, loop_as = None, None
    if order is not None and alike.followed < FOLLOWED:
        loop, loop_as = trials.any_loop(order == "act-order")
    evidence = Evidence(
        weight_error=_norm(scaled - quantized) / (_norm(scaled) or 1.0),
        cosine=_cosine(scaled, quantized),
        error=error,
        rounding_error=error_of(nearest),
        solver_error=error_of(values),
        rounded=float(columns.mean()),
        solver_rounded=int(own.sum()) / own.numel(),
        agreement=alike.agreement,
        followed=alike.followed,
        same_as=alike.same_as,
        order=order,
        any_loop=loop,
        any_loop_as=loop_as,
        scaled=coordinates.words,
        clipped=clipped(scaled, found),
        levels=levels_used(found),
        of_levels=found.scheme.max_code + 1,
        scale_spread=_spread(found),
        dead_columns=int((inputs.matrix.diagonal() == 0).sum()),
        tokens=inputs.tokens,
        rank=inputs.rank,
        condition=inputs.condition,
    )
    return evidence, better, coordinates


def _is_rounding(
    weight: Tensor, values: Tensor, nearest: Tensor, uncertainty: Tensor | float
) -> Tensor:
    """Whether each value [out, in] is the nearest level, ties and stored scales allowed for."""
    step = (values - nearest).abs_()
    same = step == 0
    allowed = step.mul_(0.5 + TIE).add_(weight.abs().mul_(TIE_OF_SCALE + ERRORS * uncertainty))
    return same | ((weight - values).abs_() <= allowed)


def _order(columns: Tensor, hessian: Tensor) -> str | None:
    """The order of a column loop: its first column is rounded, the later ones are corrected.

    columns  share of rounded codes of every column [in].
    """
    live = hessian.diagonal() > 0
    if not bool(live.any()) or float(columns[live].mean()) > 0.99:
        return None
    first, largest = int(live.nonzero()[0, 0]), int(hessian.diagonal().argmax())
    firsts = {"natural": first, "act-order": largest}
    known = [name for name, at in firsts.items() if float(columns[at]) >= EXACT]
    return known[0] if len(known) == 1 and first != largest else None


def _spread(found: QuantizedWeight) -> float | None:
    scale = found.grid.get("scale")
    if scale is None:
        return None
    sizes = scale.float().abs()
    middle = float(sizes.median())
    return float(sizes.max()) / middle if middle else None


def _cosine(one: Tensor, other: Tensor) -> float:
    both = _norm(one) * _norm(other)
    return float((one * other).sum(dtype=torch.float64)) / both if both else 0.0


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))
