"""Cut: the parts that are removed from a model, and the configuration of the model without them.

Blocks that are removed pass their input through, so the model without them is one with fewer
blocks, which any program loads. Rows and columns that are removed make layers smaller than their
namesakes in other blocks; config.json says their shapes (PRUNED), and Bitsweep alone reads it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from quant.blocks import Blocks
from quant.pruning import PRUNED

_WEIGHTS, _LAYERS = "removed_weights", "layers"


@dataclass(frozen=True)
class Cut:
    """What is removed from a model, by the names and numbers of the whole model.

    blocks   numbers of the removed blocks.
    outputs  rows of a layer that stay, int64 in rising order, by its full name.
    inputs   columns of a layer that stay, int64 in rising order, by its full name.
    weights  weights [out, in] of the whole layer that take the place of its own before it is cut.
    said     what was removed, for records: "blocks 3, 7".
    """

    blocks: tuple[int, ...] = ()
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    said: str = ""

    def kept(self, count: int) -> list[int]:
        """Return the numbers of the blocks that stay, of `count`."""
        return [index for index in range(count) if index not in self.blocks]

    def renamed(self, blocks: Blocks) -> dict[str, str]:
        """Return the names of the blocks that stay by their names in the model without the rest."""
        kept = self.kept(len(blocks))
        return {blocks.block_name(new): blocks.block_name(old) for new, old in enumerate(kept)}

    def tensor(self, name: str, value: Tensor) -> Tensor:
        """Return what stays of a parameter, by its name in the whole model."""
        layer, _, part = name.rpartition(".")
        if part == "weight" and layer in self.weights:
            value = self.weights[layer].to(value)
        if layer in self.outputs and value.dim() > 0:
            value = value.index_select(0, self.outputs[layer].to(value.device))
        if layer in self.inputs and value.dim() > 1:
            value = value.index_select(1, self.inputs[layer].to(value.device))
        return value


def config_without(
    config: PreTrainedConfig, cut: Cut, blocks: int, shapes: Mapping[str, tuple[int, int]]
) -> PreTrainedConfig:
    """Return the configuration of a model of so many blocks without what `cut` removes.

    shapes  (outputs, inputs) of the layers that become smaller, by their new names.
    """
    found = copy.deepcopy(config)
    text: Any = found.get_text_config(decoder=True)
    kept = cut.kept(blocks)
    for name, value in text.to_dict().items():
        if "layer" in name and isinstance(value, list | tuple) and len(value) == blocks:
            setattr(text, name, [value[index] for index in kept])
    text.num_hidden_layers = len(kept)
    layers = {name: list(shape) for name, shape in shapes.items()}
    setattr(found, PRUNED, {_LAYERS: layers} if layers else {})
    return found


def note_removed(config: PreTrainedConfig, weights: int) -> None:
    """Note in a model's configuration how many weights of the blocks' matrices were removed."""
    getattr(config, PRUNED)[_WEIGHTS] = weights


def removed_weights(config: PreTrainedConfig) -> int:
    """Return the number of weights that were removed from the blocks' matrices; mostly 0."""
    return int(getattr(config, PRUNED, {}).get(_WEIGHTS, 0))


def smaller_layers(config: PreTrainedConfig) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of the layers that are smaller than the configuration says."""
    layers = getattr(config, PRUNED, {}).get(_LAYERS, {})
    return {name: (int(outputs), int(inputs)) for name, (outputs, inputs) in layers.items()}
