"""Solve one layer from its Hessian, as quantize_model does it in two steps."""

from __future__ import annotations

from torch import Tensor

from quant.hessian import Factor
from quant.scheme import Scheme
from quant.solvers import gptq
from quant.solvers.base import Layer, Solution

DEFAULTS = gptq.Options()


def solve(
    weight: Tensor,
    hessian: Tensor | Factor,
    scheme: Scheme,
    options: gptq.Options = DEFAULTS,
    layer: str = "this layer",
    tokens: int | None = None,
    kernel: str = "auto",
) -> Solution:
    """GPTQ on weight [out, in] with H [in, in], or with a factor that was made before."""
    where = Layer(layer, tokens, kernel)
    factor = hessian if isinstance(hessian, Factor) else gptq.prepare(hessian, options, where)
    return gptq.solve(weight, scheme, factor, options, where)
