"""Map the tensor names of mixtures of experts between the model and its files.

transformers stores Mixtral's experts under `mlp`, checkpoints on the hub under `block_sparse_moe`.
Written files have the hub's names, so that other readers find them; both are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming, rename_source_key

from quant.experts import Experts


@dataclass(frozen=True)
class Names:
    """to_stored maps a name in the model to the name in the files, to_model maps it back."""

    to_stored: Callable[[str], str]
    to_model: Callable[[str], str]


def _same(name: str) -> str:
    return name


SAME = Names(_same, _same)


def names_of(model: nn.Module) -> Names:
    """Return the name mapping of a model; the identity for a model without split experts.

    A name that would not map back to itself is kept.
    """
    mixture = any(isinstance(module, Experts) for module in model.modules())
    if not mixture or not isinstance(model, PreTrainedModel):
        return SAME
    renamings = [
        entry
        for entry in get_model_conversion_mapping(model, add_legacy=False)
        if isinstance(entry, WeightRenaming) and not isinstance(entry, PrefixChange)
    ]
    reversed_ones = (entry.reverse_transform() for entry in reversed(renamings))
    back = [entry for entry in reversed_ones if isinstance(entry, WeightRenaming)]

    def to_model(name: str) -> str:
        return rename_source_key(name, renamings, [])[0]

    def to_stored(name: str) -> str:
        stored = rename_source_key(name, back, [], reverse=True)[0]
        return stored if to_model(stored) == name else name

    return Names(to_stored, to_model)
