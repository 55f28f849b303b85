"""RTN, round to nearest: every weight on its own, the baseline of every table."""

from __future__ import annotations

import torch
from torch import Tensor

from quant.grid import assemble, check_finite, find_groups, quantize_groups
from quant.scheme import Scheme
from quant.solvers.base import Solution


@torch.no_grad()
def solve(weight: Tensor, scheme: Scheme, layer: str = "this layer") -> Solution:
    """Round weight [out, in] to the nearest levels of its min-max or MSE grids, groups included.

    Computed in float32 (float64 if weight is). Raises NonFiniteError for weights that are not
    finite and QuantizationError for scales beyond scheme.scale_dtype.
    """
    layer = layer or "this layer"
    check_finite(weight, layer)
    grid = find_groups(weight, scheme, layer)
    return Solution(assemble(quantize_groups(weight, grid, scheme), grid, scheme))
