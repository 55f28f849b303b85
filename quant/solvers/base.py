"""What every solver returns."""

from __future__ import annotations

from dataclasses import dataclass

from quant.weight import QuantizedWeight


@dataclass(frozen=True)
class Solution:
    """A quantized layer and what the solver can say about it.

    loss          GPTQ: sum over rows and columns of (w - q)^2 / U_jj^2 / 2 (the figure that the
                  authors' code prints), U the upper Cholesky factor of the inverse Hessian.
                  None for a solver that sees no Hessian.
    damping       absolute value that was added to the Hessian's diagonal; None without Hessian.
    dead_columns  inputs that were zero on all of the calibration data.
    fallback      what had to be done differently than asked for, and was allowed; None: nothing.
    """

    weight: QuantizedWeight
    loss: float | None = None
    damping: float | None = None
    dead_columns: int = 0
    fallback: str | None = None
