"""Names of tensors in the files of a model, where they differ from the model's.

transformers holds Mixtral's experts under `mlp`, checkpoints on a hub under `block_sparse_moe`.
What is written bears the names of the hub, so that other readers find it; both are read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from quant.errors import ArtifactError
from quant.experts import Experts, fused_parts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Names:
    """to_stored gives the name in the files of a name in the model, to_model the way back."""

    to_stored: Callable[[str], str]
    to_model: Callable[[str], str]


def _same(name: str) -> str:
    return name


SAME = Names(_same, _same)


def names_of(model: nn.Module) -> Names:
    """The names of a model's tensors in files; the same for a model without taken-apart experts.

    A name that would not come back as it was is kept.
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


def stored_names(model: PreTrainedModel, stored: Iterable[str], advice: str = "") -> dict[str, str]:
    """Names of the model's parameters and buffers to the names in its files that belong to them.

    By the conventions of transformers: renamed keys, and the prefix of the base model added or
    removed. Names that belong to nothing are ignored, as there. Raises ArtifactError for tensors
    that transformers makes of several stored ones.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    inside: dict[str, list[str]] = {}  # of a fused tensor those that it is taken apart into
    for part_name, part in fused_parts(model).items():
        inside.setdefault(part.fused, []).append(part_name)
        state[part.fused] = state[part_name]  # so that the prefix of the base model is found
    found: dict[str, str] = {}
    for name in sorted(stored):
        alone, _ = rename_source_key(name, renamings, [], prefix, state)
        if alone in inside:
            found |= dict.fromkeys(inside[alone], name)
            continue
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed in inside and alone in state:  # an expert's own tensor, which is one here too
            renamed, pattern = alone, None
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], prefix, state)
        if renamed not in state:
            log.info("%s of the checkpoint belongs to nothing in %s", name, type(model).__name__)
            continue
        if pattern is not None:
            raise ArtifactError(
                f"{renamed} of {type(model).__name__} is put together from several stored tensors "
                f"(such as {name}), which cannot be read block by block; use another model. "
                f"{advice}"
            )
        found[renamed] = name
    return found
