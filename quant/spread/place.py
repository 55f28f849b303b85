"""Find where the parts of a model are to lie, before its weights are there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from quant.blocks import find_blocks
from quant.errors import ModelStructureError
from quant.spread.split import Parts, Room, Spread, block_of, split


@dataclass(frozen=True)
class Over:
    """The devices that a model is to be spread over, and what must have room beside its weights.

    block  bytes that every block takes on its device: keys and values.
    """

    rooms: tuple[Room, ...]
    block: int = 0

    @property
    def home(self) -> str:
        return self.rooms[0].device

    def spread(self, model: PreTrainedModel, packed: Mapping[str, int] | None = None) -> Spread:
        """Where the parts of a model lie, whose weights may be on the meta device.

        packed  bytes of the layers that are going to be packed, by full name.

        Raises NotEnoughMemory and ModelStructureError.
        """
        parts, head = parts_of(model, packed), _own_head(model, packed or {})
        counts = split(parts.beside(self.block), self.rooms, type(model).__name__)
        devices = tuple(room.device for room in self.rooms)
        found = Spread(find_blocks(model).name, devices, counts, head)
        _require_own_weights(model, found)
        return found


def _own_head(model: PreTrainedModel, packed: Mapping[str, int]) -> str | None:
    """The name of the head; None for one that shares its weight with the embeddings."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None:
        raise ModelStructureError(
            f"{type(model).__name__} has no output embeddings, so it is not known where its logits "
            "come from: use runtime.devices=1."
        )
    name = next(name for name, module in model.named_modules() if module is head)
    shared = getattr(head, "weight", head) is getattr(table, "weight", table)
    return None if shared and name not in packed else name


def parts_of(model: PreTrainedModel, packed: Mapping[str, int] | None = None) -> Parts:
    """Bytes of the parts of a model, some of whose layers are going to be packed into so many;
    shared tensors count once, where they are met first.
    """
    packed, blocks = packed or {}, find_blocks(model)
    head = _own_head(model, packed)
    first, inside, last = 0, [0] * len(blocks), 0
    seen: set[int] = set()
    for path, module in model.named_modules():
        size = packed.get(path, 0)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or id(tensor) in seen or (path in packed and name == "weight"):
                continue
            seen.add(id(tensor))
            size += math.prod(tensor.shape) * tensor.element_size()
        index = block_of(path, blocks.name)
        if index is not None:
            inside[index] += size
        elif head is not None and f"{path}.".startswith(f"{head}."):
            last += size
        else:
            first += size
    return Parts(first, tuple(inside), last)


def _require_own_weights(model: nn.Module, spread: Spread) -> None:
    """Raise ModelStructureError if blocks on different devices share a weight."""
    seen: dict[int, tuple[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other, device = seen.setdefault(id(parameter), (name, spread.of(name)))
        if device != spread.of(name):
            raise ModelStructureError(
                f"{type(model).__name__}: {other} and {name} are one weight, and would lie on "
                f"{device} and {spread.of(name)}: use runtime.devices=1."
            )
