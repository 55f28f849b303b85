"""Hessians of layers from plain forward passes of the whole model, in float64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel


def naive_hessians(
    model: PreTrainedModel, layers: Iterable[str], windows: list[Tensor]
) -> dict[str, Tensor]:
    """2/n sum x x^T [in, in] by layer, of what reaches its weight; one window at a time."""
    inputs: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0].double().flatten(0, -2))
        )
        for layer, seen in inputs.items()
    ]
    try:
        with torch.no_grad():
            for window in windows:
                model(window[None])
    finally:
        for hook in hooks:
            hook.remove()
    return {
        layer: torch.stack([x.T @ x for x in seen]).sum(0) * (2 / len(windows))
        for layer, seen in inputs.items()
    }
