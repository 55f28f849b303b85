"""What a model keeps of a sequence: keys and values of every position, or a state of fixed size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROBED = 2  # positions of the sequence that is read, so that what grows is told from what does not


@dataclass(frozen=True)
class CacheShape:
    """The cache of one sequence, in the dtype of the model's own cache.

    per_position  bytes of a position by window: None for layers that keep all positions, else the
                  number of positions that layers of a sliding window keep.
    state         bytes that do not grow (convolutions, recurrent states).
    """

    per_position: dict[int | None, int]
    state: int

    def at(self, positions: int) -> int:
        """Bytes after `positions` tokens."""
        held = (
            size * (positions if window is None else min(positions, window))
            for window, size in self.per_position.items()
        )
        return self.state + sum(held)


@torch.inference_mode()
def cache_shape(model: Any, token: Tensor) -> CacheShape | None:
    """The cache that the model fills itself when it reads `token` [1, 1] PROBED times.

    Heads, widths, layers that share a cache, windows and dtype are those of the tensors found, not
    of a formula. None if the model returns no cache of layers.
    """
    output = model(input_ids=token.expand(1, PROBED), use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", None)
    if layers is None:
        return None
    per_position: dict[int | None, int] = {}
    state = 0
    for layer in layers:
        for tensor in _tensors([getattr(layer, "keys", None), getattr(layer, "values", None)]):
            window = layer.sliding_window if getattr(layer, "is_sliding", False) else None
            size = tensor.numel() * tensor.element_size() // tensor.shape[-2]
            per_position[window] = per_position.get(window, 0) + size
        for name in ("conv_states", "recurrent_states"):
            found = getattr(layer, name, None) or {}
            tensors = _tensors(found.values() if isinstance(found, dict) else [found])
            state += sum(each.numel() * each.element_size() for each in tensors)
    return CacheShape(per_position, state)


def _tensors(found: Iterable[Any]) -> list[Tensor]:
    """The tensors that are there and hold something."""
    return [each for each in found if isinstance(each, Tensor) and each.numel()]
