"""RTN, round to nearest: every weight on its own, the baseline of every table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quant.solvers.base import Layer, Memory, NoOptions, Solution, Solver

if TYPE_CHECKING:
    from torch import Tensor

    from quant.scheme import Scheme

DEFAULT_OPTIONS, ANY_LAYER = NoOptions(), Layer()


def solve(
    weight: Tensor,
    scheme: Scheme,
    prepared: None = None,  # noqa: ARG001
    options: NoOptions = DEFAULT_OPTIONS,  # noqa: ARG001
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Round weight [out, in] to the nearest levels of its min-max or MSE grids, groups included.

    Computed in float32 (float64 if weight is). Raises SchemeError for groups that do not divide
    the inputs, NonFiniteError for weights that are not finite and QuantizationError for scales
    beyond scheme.scale_dtype.
    """
    from quant.grid import assemble, check_finite, find_grid, quantize, working

    outputs, inputs = weight.shape
    groups = scheme.groups(inputs, layer.name)
    weight = weight.detach()
    check_finite(weight, layer.name)
    rows = working(weight).reshape(outputs * groups, inputs // groups)
    grid = find_grid(rows, scheme, layer.name)
    codes = quantize(rows, grid, scheme).reshape(outputs, inputs)
    return Solution(assemble(codes, grid, scheme))


SOLVER = Solver(
    name="rtn",
    label="RTN",
    solve=solve,
    memory=Memory(weights=5),  # measured: 4.4
    version=2,
)
