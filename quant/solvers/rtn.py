"""RTN, round to nearest: every weight on its own, the reference method of every table."""

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
    """Round weight [out, in] to the nearest levels of its min-max or MSE grids, per row or group.

    Computes in float32 (float64 if weight is). Raises NonFiniteError for weights that are not
    finite and QuantizationError for scales that exceed scheme.scale_dtype.
    """
    from quant.grid import assemble, check_finite, find_groups, quantize_groups

    weight = weight.detach()
    check_finite(weight, layer.name)
    grid = find_groups(weight, scheme, layer.name)
    return Solution(assemble(quantize_groups(weight, grid, scheme), grid, scheme))


def oracle(weight: Tensor, scheme: Scheme, *_: object) -> Tensor:
    """Try every level for every weight."""
    from quant.solvers.textbook import rounded

    return rounded(weight, scheme)


SOLVER = Solver(
    name="rtn",
    label="RTN",
    solve=solve,
    oracle=oracle,
    memory=Memory(weights=5),  # measured: 4.4
    version=2,
)
