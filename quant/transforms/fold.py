"""Fold a change of coordinates into the module that computes the changed tensor.

The class of a module does not tell how it uses its weight: a norm may multiply by weight or by 1 +
weight (Gemma). Each way is therefore tried on the module's own input, and kept if the output
matches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from quant.blocks import LINEAR_TYPES, weight_matrix
from quant.transforms.base import Change

Values = dict[str, Tensor]


@torch.no_grad()
def fold(module: nn.Module, change: Change, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Change the parameters of `module` so that its output y = module(*args, **kwargs) becomes y T.

    Returns False, with all parameters restored, if no way matches within rounding. A norm can
    absorb a scaling, a linear layer any change.
    """
    expected = change.inputs(module(*args, **kwargs))
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    before = {name: value.clone() for name, value in parameters.items()}
    for values in _ways(module, change, before):
        for name, value in values.items():
            parameters[name].copy_(value)
        if same(module(*args, **kwargs), expected):
            return True
    for name, value in before.items():
        parameters[name].copy_(value)
    return False


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether every column of found [..., columns] equals the expected one within rounding."""
    # Two roundings of parameters and two of values, with a margin for sums and for 1 + weight. The
    # margin is small in half precision, where one unit in the last place is large.
    eps = torch.finfo(found.dtype).eps
    allowed = (4 if eps > 1e-5 else 32) * eps * expected.flatten(0, -2).abs().amax(dim=0)
    apart = (found - expected).flatten(0, -2).abs().amax(dim=0)
    return bool((apart <= allowed).all())  # false for NaN


def _ways(module: nn.Module, change: Change, before: Values) -> Iterator[Values]:
    """Yield new parameters that may produce the changed output."""

    def linear(values: Tensor) -> Tensor:
        """Return values T without the shift that a change may have besides."""
        return change.inputs(values) - change.inputs(torch.zeros_like(values))

    if isinstance(module, LINEAR_TYPES):
        rows = linear(weight_matrix(module).T)
        values = {"weight": rows if isinstance(module, Conv1D) else rows.T}
        if "bias" in before:
            values["bias"] = change.inputs(before["bias"])
        yield values
        return
    if not before.keys() <= {"weight", "bias"} or any(
        value.dim() != 1 for value in before.values()
    ):
        return
    shift = {"bias": change.inputs(before["bias"])} if "bias" in before else {}
    if "weight" in before:
        yield {"weight": linear(before["weight"]), **shift}
        yield {"weight": linear(1 + before["weight"].double()) - 1, **shift}
