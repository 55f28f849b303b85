"""Audit one layer: its codes beside rounding and beside the solver, on the same grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quant.audit.coordinates import Coordinates, find_coordinates
from quant.audit.grids import clipped, levels_used, rounded, rows_of, solved
from quant.hessian import Factor, factorize
from quant.weight import QuantizedWeight

# A code counts as rounding if its level is the nearest, or no further than this many steps from
# being it: producers divide by a scale before they round the scale to its stored type.
TIE = 0.01
TIE_OF_SCALE = 2**-8  # of the weight itself; half a unit in the last place of bfloat16
ERRORS = 3  # standard errors of a factor that a tie may be off by
DAMPING, OTHERS = 0.01, (0.05, 0.1, 0.001)  # the paper's, and others that producers use
SAMPLE = 64  # rows on which the others are tried; GPTQ solves every row on its own
EXACT = 0.995  # share of a column's codes that must be rounding for the column to be uncorrected


@dataclass(frozen=True)
class Moments:
    """The inputs of a layer on the calibration text; layers with the same inputs share them.

    matrix     H [in, in] = 2/n sum x x^T, without damping.
    tokens     number of tokens in it.
    rank       eigenvalues above the rounding noise of the largest.
    condition  largest eigenvalue over the smallest one that counts.
    factors    factors of the matrix by damping and act-order, as they come to be needed.
    """

    matrix: Tensor
    tokens: int
    rank: int
    condition: float
    factors: dict[tuple[float, bool], Factor] = field(default_factory=dict, repr=False)

    def factor(self, damping: float, act_order: bool, layer: str) -> Factor:
        """Return the damped, factored matrix."""
        key = (damping, act_order)
        if key not in self.factors:
            self.factors[key] = factorize(self.matrix, damping, act_order, layer, self.tokens)
        return self.factors[key]

    def of(self, coordinates: Coordinates) -> Moments:
        """Return the moments of the inputs of a scaled weight."""
        if coordinates.columns is None:
            return self
        matrix = coordinates.hessian(self.matrix)
        return Moments(matrix, self.tokens, self.rank, self.condition)


@dataclass(frozen=True)
class Evidence:
    """What the codes of one layer show. Errors are tr(E H E^T) / tr(W H W^T), with E = W - Q.

    weight_error      ||W - Q||_F / ||W||_F.
    cosine            of W and Q as vectors; near 0 for weights that have nothing in common.
    error             of the checkpoint's codes.
    rounding_error    of the nearest levels of its grids.
    solver_error      of GPTQ on its grids (the better of both column orders).
    rounded           share of its codes that are the nearest levels.
    solver_rounded    the same share of the solver's codes.
    agreement         share of its codes that the solver has too, at the damping and order that fit
                      best; `same_as` says which these are.
    order             "natural" or "act-order", if the first column of that order is uncorrected and
                      that of the other is not; None: not known.
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
    same_as: str
    order: str | None
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


def moments(matrix: Tensor, tokens: int) -> Moments:
    """Rank and condition of a Hessian [in, in], whose products were summed in float32."""
    values = torch.linalg.eigvalsh(matrix.double() if len(matrix) <= 256 else matrix)
    top = float(values[-1])
    noise = top * len(matrix) * torch.finfo(torch.float32).eps
    counting = values[values > max(noise, 0)]
    rank = min(len(counting), tokens)
    condition = top / float(counting[-rank]) if rank else 0.0
    return Moments(matrix, tokens, rank, condition)


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
    size = _loss(scaled, inputs.matrix)

    def error_of(values: Tensor) -> float:
        return _loss(scaled - values, inputs.matrix) / size if size else 0.0

    solutions = {
        act_order: solved(scaled, found, inputs.factor(DAMPING, act_order, layer), kernel)
        for act_order in (False, True)
    }
    values = {order: each.dequantize() for order, each in solutions.items()}
    errors = {order: error_of(each) for order, each in values.items()}
    best = min(solutions, key=lambda order: errors[order])
    agreement, same_as = _most_alike(scaled, found, solutions, inputs, kernel, layer)
    close = _is_rounding(scaled, quantized, nearest, coordinates.uncertainty)
    own = _is_rounding(scaled, values[best], nearest, coordinates.uncertainty)
    evidence = Evidence(
        weight_error=_norm(scaled - quantized) / (_norm(scaled) or 1.0),
        cosine=_cosine(scaled, quantized),
        error=error_of(quantized),
        rounding_error=error_of(nearest),
        solver_error=errors[best],
        rounded=float(close.float().mean()),
        solver_rounded=float(own.float().mean()),
        agreement=agreement,
        same_as=same_as,
        order=_order(close, inputs.matrix),
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
    return evidence, solutions[best], coordinates


def _most_alike(
    weight: Tensor,
    found: QuantizedWeight,
    solutions: Mapping[bool, QuantizedWeight],
    inputs: Moments,
    kernel: str,
    layer: str,
) -> tuple[float, str]:
    """The largest share of equal codes over column orders and dampings, and these in words.

    Other dampings than the usual one are tried on some rows only.
    """
    shares = {order: _equal(each.codes, found.codes) for order, each in solutions.items()}
    act_order = max(shares, key=lambda order: shares[order])
    best, damping = shares[act_order], DAMPING
    if best < EXACT:
        some = slice(None, None, -(-len(weight) // SAMPLE))
        part = rows_of(found, some)
        for other in OTHERS:
            factor = inputs.factor(other, act_order, layer)
            share = _equal(solved(weight[some], part, factor, kernel).codes, part.codes)
            if share > best:
                best, damping = share, other
    return best, f"damping {damping:g}{', act-order' * act_order}"


def _equal(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())


def _loss(apart: Tensor, hessian: Tensor) -> float:
    """tr(E H E^T)."""
    return float(((apart @ hessian) * apart).sum(dtype=torch.float64))


def _is_rounding(
    weight: Tensor, values: Tensor, nearest: Tensor, uncertainty: Tensor | float
) -> Tensor:
    """Whether each value [out, in] is the nearest level, ties and stored scales allowed for."""
    step = (values - nearest).abs()
    allowed = (TIE_OF_SCALE + ERRORS * uncertainty) * weight.abs() + (0.5 + TIE) * step
    return (step == 0) | ((weight - values).abs() <= allowed)


def _order(close: Tensor, hessian: Tensor) -> str | None:
    """The order of a column loop: its first column is rounded, the later ones are corrected."""
    live = hessian.diagonal() > 0
    columns = close.float().mean(dim=0)
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
    return float(torch.linalg.vector_norm(values.double()))
