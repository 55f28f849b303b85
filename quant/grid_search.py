"""Search the grid of a group among candidates, by the error of rounding to nearest on each.

With E [rows, columns] the error of the weights of a group, a row costs

    mse        e e^T, the squared error of its weights;
    hessian    e H e^T with H = 2/n sum x x^T of the group's inputs: twice the squared error that
               the group adds to the layer's outputs on the calibration tokens, by itself.

The second is what AWQ's clip search (arXiv 2306.00978, `auto_clip` of llm-awq) computes from a
sample of tokens: the sum over tokens of (x e^T)^2 is e (sum x^T x) e^T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant.errors import QuantizationError
from quant.levels.base import HESSIAN, Tensors
from quant.products import product
from quant.scheme import Scheme
from quant.tiling import SEARCHED_WEIGHTS


def search(weight: Tensor, scheme: Scheme, layer: str, hessian: Tensor | None = None) -> Tensors:
    """Return the grid of least cost for every row of weight [rows, columns], one group of columns.

    hessian  H [columns, columns] of grid="hessian", in the dtype of weight; any multiple of it
             gives the same grids. What the levels find without a search is tried first and wins
             ties; then their candidates, in order. Costs are summed in float64: in float32 the
             order of the sum would decide between close candidates.
    """
    if scheme.grid == HESSIAN and hessian is None:
        raise QuantizationError(
            f"{layer}: grid={HESSIAN} is searched with the Hessian of the layer's inputs, and the "
            "solver passed none; pass it to find_groups, or use grid=mse."
        )
    first = scheme.kind.find(weight, scheme, layer)
    at_once = max(1, SEARCHED_WEIGHTS // weight.shape[1])
    found = []
    for begin in range(0, len(weight), at_once):
        rows = slice(begin, begin + at_once)
        start = {name: tensor[rows] for name, tensor in first.items()}
        found.append(_best(weight[rows], start, scheme, layer, hessian))
    return {name: torch.cat([part[name] for part in found]) for name in first}


def _best(
    weight: Tensor, first: Tensors, scheme: Scheme, layer: str, hessian: Tensor | None
) -> Tensors:
    kind = scheme.kind
    assert kind.candidates is not None
    others = kind.candidates(weight, scheme, layer)
    grids = {name: torch.cat([first[name][None], others[name]]) for name in first}
    against = {name: tensor.unsqueeze(2) for name, tensor in grids.items()}
    values = weight.expand(len(next(iter(grids.values()))), *weight.shape)
    error = kind.decode(kind.encode(values, against, scheme), against, scheme).sub_(values)
    if hessian is None:
        each = error.square_()
    else:
        each = product(error.flatten(0, 1), hessian).view_as(error).mul_(error)
    best = each.sum(dim=2, dtype=torch.float64).argmin(dim=0)  # the first of equal ones
    row = torch.arange(len(weight), device=weight.device)
    return {name: tensor[best, row] for name, tensor in grids.items()}
