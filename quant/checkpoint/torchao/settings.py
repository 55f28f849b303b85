"""Parse quant_type, the configuration that torchao writes of itself (torchao.core.config)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quant.errors import ArtifactError

VERSION = 2  # of the configurations whose tensors safetensors files hold
WIDTHS = range(2, 9)  # of torch.int2 to torch.int8; int1 has the levels -1 and 0 alone


@dataclass(frozen=True)
class Settings:
    """What a configuration says of all layers.

    kind         name of torchao's configuration: "IntxWeightOnlyConfig".
    bits         of a code.
    group_size   inputs that share scale and zero-point; None for a whole row.
    symmetric    whether all zero-points are 0.
    offset       whether the zero-point is a weight instead of a code (plain int4).
    activations  whether activations are rounded too when the model runs.
    """

    kind: str
    bits: int
    group_size: int | None
    symmetric: bool
    offset: bool = False
    activations: bool = False


def parse(said: Any, where: str) -> Settings:
    """Parse config.json's quant_type; ArtifactError names the field and its value."""
    entry = said.get("default") if isinstance(said, Mapping) else said
    if isinstance(entry, str):
        raise ArtifactError(
            f"{where}={entry!r} is of early versions, which saved pickles: quantize again with "
            "torchao 0.18 and transformers 5 or later, which write safetensors."
        )
    if not isinstance(entry, Mapping) or len(said) != 1:
        held = ", ".join(map(str, said)) if isinstance(said, Mapping) else repr(said)
        raise ArtifactError(
            f"{where} has {held}; expected one configuration under `default`: checkpoints of "
            "several schemes are not read; make one with a single scheme."
        )
    kind, values = entry.get("_type"), entry.get("_data")
    if kind not in list(_KINDS) or not isinstance(values, Mapping):
        raise ArtifactError(
            f"{where}.default._type={kind!r} cannot be read; only {', '.join(_KINDS)} can: "
            "quantize again with one of these."
        )
    if entry.get("_version") != VERSION:
        raise ArtifactError(
            f"{where}.default._version={entry.get('_version')!r} of {kind} cannot be read; only "
            f"{VERSION} can: quantize again with torchao 0.18 or later."
        )
    return _KINDS[kind](kind, values, f"{where}.default._data")


def _int8(kind: str, values: Mapping[str, Any], where: str) -> Settings:
    return Settings(kind, 8, _group(values, "granularity", where), symmetric=True)


def _int8_with_activations(kind: str, values: Mapping[str, Any], where: str) -> Settings:
    group = _group(values, "granularity", where)
    return Settings(kind, 8, group, symmetric=True, activations=True)


def _intx(kind: str, values: Mapping[str, Any], where: str) -> Settings:
    return _of_any_width(kind, values, where, "")


def _intx_with_activations(kind: str, values: Mapping[str, Any], where: str) -> Settings:
    return _of_any_width(kind, values, where, "weight_")


def _of_any_width(kind: str, values: Mapping[str, Any], where: str, prefix: str) -> Settings:
    width = width_of(values.get("weight_dtype"))
    if width is None:
        raise ArtifactError(
            f"{where}.weight_dtype={word(values.get('weight_dtype'))!r} cannot be read; only "
            f"{', '.join(f'int{each}' for each in WIDTHS)} can: quantize again with one of these."
        )
    packing = word(values.get("intx_packing_format", "unpacked_to_int8"))
    if packing != "unpacked_to_int8":
        raise ArtifactError(
            f"{where}.intx_packing_format={packing!r} is a layout of kernels for one processor; "
            "only unpacked_to_int8 can be read: quantize again with it."
        )
    mapping = word(values.get(f"{prefix}mapping_type", "symmetric"))
    if mapping not in ("symmetric", "symmetric_no_clipping_err", "asymmetric"):
        raise ArtifactError(
            f"{where}.{prefix}mapping_type={mapping!r} cannot be read; expected symmetric or "
            "asymmetric: quantize again with one of these."
        )
    group = _group(values, f"{prefix}granularity", where)
    symmetric = mapping != "asymmetric"
    return Settings(kind, width, group, symmetric, activations=bool(prefix))


def _int4(kind: str, values: Mapping[str, Any], where: str) -> Settings:
    packing = word(values.get("int4_packing_format", "plain"))
    if packing != "plain":
        raise ArtifactError(
            f"{where}.int4_packing_format={packing!r} is a layout that only kernels of its "
            "processor (GPU, XPU, NPU) unpack; only plain can be read: quantize again with "
            'int4_packing_format="plain".'
        )
    size = values.get("group_size")
    return Settings(kind, 4, _columns(size, f"{where}.group_size"), symmetric=False, offset=True)


_KINDS: dict[str, Callable[[str, Mapping[str, Any], str], Settings]] = {
    "Int8WeightOnlyConfig": _int8,
    "Int8DynamicActivationInt8WeightConfig": _int8_with_activations,
    "IntxWeightOnlyConfig": _intx,
    "Int8DynamicActivationIntxWeightConfig": _intx_with_activations,
    "Int4WeightOnlyConfig": _int4,
}


def _group(values: Mapping[str, Any], key: str, where: str) -> int | None:
    said = values.get(key, {"_type": "PerRow"})
    if isinstance(said, list) and said:  # of activations, then of weights
        said = said[-1]
    kind = said.get("_type") if isinstance(said, Mapping) else said
    data = said.get("_data") if isinstance(said, Mapping) else None
    data = data if isinstance(data, Mapping) else {}
    if kind == "PerGroup":
        return _columns(data.get("group_size"), f"{where}.{key}.group_size")
    if kind == "PerRow" and data.get("dim", -1) == -1:
        return None
    if kind == "PerAxis" and data.get("axis") == 0:
        return None
    raise ArtifactError(
        f"{where}.{key} is {kind} {dict(data) or ''}; only PerRow, PerAxis of axis 0 and PerGroup "
        "can be read: quantize again with one of these."
    )


def _columns(size: Any, where: str) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ArtifactError(f"{where}={size!r} cannot be read; expected a number of columns.")
    return size


def word(value: Any) -> str:
    """Return an enumeration's or dtype's value in small letters, however it was written."""
    return str(value.get("_data") if isinstance(value, Mapping) else value).lower()


def width_of(dtype: Any) -> int | None:
    """Return the bits of a dtype such as int4, or None if there is none of WIDTHS."""
    found = re.fullmatch(r"int([0-9])", word(dtype))
    return int(found[1]) if found and int(found[1]) in WIDTHS else None
