"""What the configurations of compressed-tensors have in common, however the weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quant.checkpoint.formats.base import Config
from quant.errors import ArtifactError
from quant.head import means_head

METHOD = "compressed-tensors"
INTEGERS = "pack-quantized"
NVFP4, MXFP4 = "nvfp4-pack-quantized", "mxfp4-pack-quantized"
STORED = (INTEGERS, NVFP4, MXFP4)
_EXPRESSION = "re:"  # begins targets that are regular expressions
# Settings of the library that change what a layer computes; they must be empty here.
_OTHER_FEATURES = ("kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config")


@dataclass(frozen=True)
class Group:
    """A group of layers with the same settings.

    stored   how their weights are stored, one of STORED.
    weights  the settings of the weights; where names them in errors.
    inputs   whether the layers' inputs are quantized too.
    """

    stored: str
    weights: Config
    where: str
    inputs: bool


def is_floating(config: Config) -> bool:
    """Whether a configuration is the library's, with layers stored as FP4."""
    groups = config.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else ()
    stored = [_stored(config, group) for group in found if isinstance(group, Mapping)]
    return config.get("quant_method") == METHOD and any(each in (NVFP4, MXFP4) for each in stored)


def is_of_integers(config: Config) -> bool:
    """Whether a configuration is the library's, and no FP4."""
    return config.get("quant_method") == METHOD and not is_floating(config)


def read_groups(config: Config, where: str) -> tuple[Group, Group | None]:
    """Return the settings of the layers in the blocks, and of the head if it has its own.

    Raises ArtifactError for what cannot be read: other features of the library, weights that are
    stored otherwise, layers of several settings.
    """
    found, head, own = read_mixed_groups(config, where)
    if own:
        raise ArtifactError(
            f"{where}.config_groups quantizes layers differently ({next(iter(own))!r}); only "
            "checkpoints with one setting for all layers in their blocks can be read."
        )
    return found, head


def read_mixed_groups(config: Config, where: str) -> tuple[Group, Group | None, dict[str, Group]]:
    """Return as `read_groups` does, and the settings of layers with others.

    They are by full name or regular expression (quant.checkpoint.layer_names). The other layers are
    those of the group of a class; if groups have names alone, of the first.
    """
    for key in _OTHER_FEATURES:
        if config.get(key):
            raise ArtifactError(
                f"{where}.{key} is set; only checkpoints whose weights alone are compressed can be "
                "read."
            )
    status = config.get("quantization_status", "compressed")
    if status != "compressed":
        raise ArtifactError(
            f"{where}.quantization_status={status!r}: the weights are not packed; save the model "
            "compressed (save_pretrained with save_compressed=True)."
        )
    groups = _groups(config, where)
    heads = {name: group for name, group in groups.items() if _is_of_head(group)}
    layers = {name: group for name, group in groups.items() if name not in heads} or heads
    usual = next((name for name, each in layers.items() if _of_class(each)), next(iter(layers)))
    alike = {name: each for name, each in layers.items() if _same(each, layers[usual])}
    found = _only(config, where, alike)
    head = _only(config, where, heads) if heads and layers is not heads else None
    own: dict[str, Group] = {}
    for name, each in layers.items():
        if name not in alike:
            _refuse_class(name, each, usual, where)
            other = _only(config, where, {name: each})
            own |= {_own_name(str(target)): other for target in each["targets"]}
    others = {**({} if head is None else {"the head": head}), **own}
    for what, other in others.items():
        if other.stored != found.stored:
            raise ArtifactError(
                f"{where}.config_groups stores {what} as {other.stored!r} and the layers as "
                f"{found.stored!r}; only checkpoints that store both alike can be read."
            )
    return found, head, own


def _refuse_class(name: str, group: Config, usual: str, where: str) -> None:
    """Raise ArtifactError for a second group of a class of layers, or one of no layers."""
    if _of_class(group) or not group.get("targets"):
        raise ArtifactError(
            f"{where}.config_groups {usual!r} and {name!r} quantize layers differently, and the "
            f"targets of {name!r} are no names of layers; only groups of named layers can be read "
            "beside that of all others."
        )


def _of_class(group: Config) -> bool:
    """Whether a group is of a class of layers ("Linear"), and not of layers by name."""
    targets = [str(each) for each in group.get("targets") or ()]
    return any("." not in each and not each.startswith(_EXPRESSION) for each in targets)


def _own_name(target: str) -> str:
    """Return a target as a key of CheckpointFormat.own; expressions begin where the name does."""
    pattern = target.removeprefix(_EXPRESSION)
    return target if pattern == target else f"^(?:{pattern})"


def _same(group: Config, other: Config) -> bool:
    return {**group, "targets": None} == {**other, "targets": None}


def _groups(config: Config, where: str) -> Mapping[str, Config]:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ArtifactError(f"{where}.config_groups is {groups!r}; expected one group of layers.")
    for name, group in groups.items():
        if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
            raise ArtifactError(
                f"{where}.config_groups.{name} has no weights; presets, and groups of activations "
                "only, cannot be read."
            )
    return groups


def _is_of_head(group: Config) -> bool:
    targets = group.get("targets") or ()
    return bool(targets) and all(
        means_head(str(each).removeprefix(_EXPRESSION)) for each in targets
    )


def _only(config: Config, where: str, groups: Mapping[str, Config]) -> Group:
    """Return the settings of a kind of layers; several groups must have the same settings."""
    (name, first), *others = groups.items()
    for other, group in others:
        if not _same(group, first):
            raise ArtifactError(
                f"{where}.config_groups {name!r} and {other!r} quantize layers differently; only "
                "checkpoints with one setting for all layers in their blocks can be read."
            )
    stored = _stored(config, first)
    if stored not in STORED:
        raise ArtifactError(
            f"{where}.format={stored!r} cannot be read; only {', '.join(map(repr, STORED))} can."
        )
    where_group = f"{where}.config_groups.{name}"
    if first.get("output_activations"):
        raise ArtifactError(
            f"{where_group}.output_activations quantizes activations; only weights may be "
            "quantized."
        )
    inputs = bool(first.get("input_activations"))
    return Group(str(stored), first["weights"], f"{where_group}.weights", inputs)


def _stored(config: Config, group: Config) -> object:
    return group.get("format") or config.get("format")
