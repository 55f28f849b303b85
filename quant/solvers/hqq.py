"""HQQ (Half-Quadratic Quantization, mobiusml.github.io/hqq_blog): move zero-points, without data.

The weights w of a group have the levels s (q - z). With s fixed, the zero-point z is to make the
error e sparse, sum |e|^p with p < 1, so that it lies in few weights, the outliers. The problem is
split by half-quadratic splitting: e is an unknown of its own beside w - s (q - z), tied to it by a
square with the factor beta. Each iteration rounds q = round(w / s + z), clamped, and takes in turn

    e = shrink(w - s (q - z)),    shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)
    z = mean(q - (w - e) / s)

and multiplies beta by kappa. z is the least-squares solution for these q and e; it has fractions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.scheme import Scheme

# Weights whose grids are optimized at a time; what an iteration holds of them stays in the cache.
AT_ONCE = 1 << 16
COPIES = 8  # float64 numbers that an iteration holds for every weight


@dataclass(frozen=True)
class Options:
    """How zero-points are moved; the defaults are those of the authors' library.

    lp_norm     p, above 0 and up to 1.
    beta        factor of the square at first, above 0, in the unit of the weights: errors below
                beta^(1 / (p - 2)), 0.17 by default, shrink to 0, and z then is the mean alone.
    kappa       1 or more, multiplies beta after every iteration.
    iterations  of the two steps; 0 leaves the grids that the levels find.
    round_zero  whether zero-points are rounded to integers at first, so that 0 has a level; None:
                at 4 bits, as in the library's configuration.
    """

    lp_norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20
    round_zero: bool | None = None

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("lp_norm", 0 < self.lp_norm <= 1, "a number above 0, up to 1; 0.7 is the authors'"),
            ("beta", 0 < self.beta < math.inf, "a finite number above 0; 10 is the authors'"),
            ("kappa", 1 <= self.kappa < math.inf, "1 or more; 1.01 is the authors'"),
            ("iterations", self.iterations >= 0, "0 or more; 20 is the authors'"),
        ):
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)} cannot be; use {wanted}.")

    def starts_rounded(self, scheme: Scheme) -> bool:
        """Return whether zero-points are integers at first."""
        return scheme.bits == 4 if self.round_zero is None else self.round_zero


DEFAULT_OPTIONS, ANY_LAYER = Options(), Layer()


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: None = None,  # noqa: ARG001
    options: Options = DEFAULT_OPTIONS,
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Round weight [out, in] to the grids of its range, per row or group, with moved zero-points.

    Every group is optimized by itself, in float64, so that a result depends neither on the machine
    nor on other groups; zero-points are then rounded to their storage type and weights to the
    nearest level. Raises NonFiniteError and QuantizationError as rounding does.
    """
    from quant.grid import Grid, assemble, check_finite, find_groups, quantize_groups

    weight = weight.detach()
    check_finite(weight, layer.name)
    start = find_groups(weight, scheme, layer.name)
    inputs = weight.shape[1]
    size, groups = min(scheme.group_size or inputs, inputs), scheme.groups(inputs)
    zero = start["zero"].clone()
    rows = max(1, AT_ONCE // inputs)
    whole = inputs // size
    # The groups of full size, and the short last one if there is one.
    for first, last in ((0, whole), (whole, groups)):
        columns = slice(first * size, last * size)
        for top in range(0, len(weight) if last > first else 0, rows):
            part = slice(top, top + rows)
            moved = optimize(
                weight[part, columns].double().unflatten(1, (last - first, -1)),
                start["scale"][part, first:last, None].double(),
                zero[part, first:last, None].double(),
                scheme,
                options,
            )
            zero[part, first:last] = as_stored(moved[..., 0], scheme).to(zero.dtype)
    grid = Grid({"scale": start["scale"], "zero": zero})
    return Solution(assemble(quantize_groups(weight, grid, scheme), grid, scheme))


def as_stored(zero: Tensor, scheme: Scheme) -> Tensor:
    """Return zero-points in the dtype that they are stored in."""
    import torch

    (declared,) = (each for each in scheme.kind.tensors if each.name == "zero")
    return zero.to(getattr(torch, declared.storage(scheme)))


def optimize(
    weight: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme, options: Options
) -> Tensor:
    """Return the zero-points [..., 1] of groups weight [..., columns] with scales [..., 1]."""
    import torch

    if options.starts_rounded(scheme):
        zero = zero.round()
    units, power, beta = weight / scale, options.lp_norm - 1, options.beta
    for _ in range(options.iterations):
        codes = (units + zero).round_().clamp_(0, scheme.max_code)
        error = weight - (codes - zero).mul_(scale)
        size = error.abs()
        kept = size.sub_(size.pow(power).div_(beta)).clamp_(min=0)
        kept = torch.copysign(kept, error).div_(scale)
        zero = codes.sub_(units).add_(kept).mean(-1, keepdim=True)
        beta *= options.kappa
    return zero


def oracle(
    weight: Tensor, scheme: Scheme, _hessian: None, _damping: None, options: Options
) -> Tensor:
    """Solve group after group, and try every level for every weight."""
    import torch

    from quant.grid import Grid, find_groups
    from quant.solvers.textbook import nearest

    grids, size = find_groups(weight, scheme), scheme.group_size or weight.shape[1]
    values = torch.empty_like(weight)
    for row in range(len(weight)):
        for group in range(scheme.groups(weight.shape[1])):
            own = weight[row, group * size : (group + 1) * size]
            scale, zero = (float(grids[name][row, group]) for name in ("scale", "zero"))
            zero = float(round(zero)) if options.starts_rounded(scheme) else zero
            for step in range(options.iterations):
                beta = options.beta * options.kappa**step
                codes = torch.clamp(torch.round(own / scale + zero), 0, scheme.max_code)
                far = own - scale * (codes - zero)
                least = far.abs() ** (options.lp_norm - 1) / beta
                apart = torch.where(far.abs() > least, far - far.sign() * least, 0.0)
                zero = float((codes - (own - apart) / scale).mean())
            kept = as_stored(own.new_tensor([zero]), scheme).to(own)
            grid = Grid({"scale": own.new_tensor([scale]), "zero": kept})
            for column, each in enumerate(own, start=group * size):
                values[row, column] = nearest(each[None], grid, scheme)[0]
    return values


def refuses(options: Options, scheme: Scheme) -> str | None:  # noqa: ARG001
    """Levels that do not store a scale and a zero-point with fractions."""
    if {each.name: each.code for each in scheme.kind.tensors} == {"scale": False, "zero": False}:
        return None
    group = "" if scheme.group_size is None else f"g{scheme.group_size}"
    return (
        f"it moves zero-points by fractions of a step, which {scheme.kind.name} levels do not "
        f"store; use scheme=hqq{scheme.bits}{group}"
    )


def describe(options: Options) -> list[str]:
    """Return the options that differ from the defaults, in the words of tables."""
    labels = {
        "lp_norm": f"p {options.lp_norm:g}",
        "beta": f"beta {options.beta:g}",
        "kappa": f"kappa {options.kappa:g}",
        "iterations": f"{options.iterations} iterations",
        "round_zero": "rounded at first" if options.round_zero else "not rounded at first",
    }
    names = [field.name for field in fields(options)]
    return [labels[n] for n in names if getattr(options, n) != getattr(DEFAULT_OPTIONS, n)]


SOLVER = Solver(
    name="hqq",
    label="HQQ",
    solve=solve,
    options=Options,
    # The numbers beside are float64, which the plan counts as two of float32.
    memory=Memory(weights=6, beside=2 * COPIES * AT_ONCE),
    describe=describe,
    oracle=oracle,
    refuses=refuses,
)
