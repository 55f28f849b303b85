"""RTN on grids that are searched with the Hessian: rounding as in AWQ's clip search."""

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
    prepared: Tensor,
    options: NoOptions = DEFAULT_OPTIONS,  # noqa: ARG001
    layer: Layer = ANY_LAYER,
) -> Solution:
    """Round weight [out, in] to nearest on the grids that H [in, in] chooses, per row or group.

    H is taken as it is, without damping: a group whose inputs were all 0 gets its min-max grid.
    Computes in float32, or in float64 if weight or Hessian is. Raises NonFiniteError for weights or
    a Hessian that are not finite and QuantizationError for scales that exceed scheme.scale_dtype.
    """
    import torch

    from quant.errors import NonFiniteError
    from quant.grid import assemble, check_finite, find_groups, quantize_groups, working

    check_finite(weight, layer.name)
    if not bool(torch.isfinite(prepared.sum())):
        raise NonFiniteError(
            f"{layer.name}: the Hessian is not finite; its calibration activations overflowed: run "
            "the model in float32 or bfloat16, or look for damage in the layers before."
        )
    weight = weight.detach().to(torch.promote_types(working(weight).dtype, prepared.dtype))
    grid = find_groups(weight, scheme, layer.name, lambda part: prepared[part, part])
    dead = int((prepared.diagonal() == 0).sum())
    codes = quantize_groups(weight, grid, scheme)
    return Solution(assemble(codes, grid, scheme), dead_columns=dead)


def refuses(options: NoOptions, scheme: Scheme) -> str | None:  # noqa: ARG001
    """Grids that no Hessian chooses: the result would be that of plain rounding."""
    if scheme.needs_hessian:
        return None
    return (
        "its grids are found without calibration, as method=rtn finds them; use method=rtn, or "
        "scheme.grid=hessian"
    )


def oracle(weight: Tensor, scheme: Scheme, hessian: Tensor, *_: object) -> Tensor:
    """Try every level for every weight."""
    from quant.solvers.textbook import rounded

    return rounded(weight, scheme, hessian)


SOLVER = Solver(
    name="rtn_calibrated",
    label="RTN, calibrated",
    solve=solve,
    needs_calibration=True,
    searches_with_hessian=True,
    memory=Memory(weights=5, prepared=1, preparing=1),
    refuses=refuses,
    oracle=oracle,
)
