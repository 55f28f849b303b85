"""GPTQ version 1, the format of AutoGPTQ: zero-points are stored minus one.

A configuration that does not declare its version is read as version 1 until the tensors show which
one it is (quant.checkpoint.gptq_zeros).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quant.checkpoint import gptq
from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    QuantizedModel,
    StoredLayer,
    Writer,
    refuse_levels,
)
from quant.scheme import Scheme

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Read, Shape, Tensors
    from quant.linear import Packed
    from quant.weight import QuantizedWeight

VERSION, OTHER = gptq.V1, gptq.V2


def matches(config: Config) -> bool:
    """Whether it is GPTQ and not declared as version 2; parse refuses other versions by name."""
    declared = gptq.declared_versions(config).values()
    return gptq.method_of(config) == gptq.METHOD and OTHER.checkpoint_format not in declared


def parse(config: Config, where: str) -> CheckpointFormat:
    versions = (VERSION.checkpoint_format, OTHER.checkpoint_format)
    return gptq.parse(config, where, FORMAT, versions, bits=gptq.READERS_BITS)


def zero_points(parsed: CheckpointFormat) -> str:
    return gptq.zero_points(parsed, "version 1 (stored minus one)")


def settle(parsed: CheckpointFormat, layers: Mapping[str, Tensors], where: str) -> CheckpointFormat:
    """Return the version that the tensors show, if the configuration declares none."""
    from quant.checkpoint.formats import gptq_v2
    from quant.checkpoint.gptq_zeros import find_version, wraps

    found = None if parsed.declared else find_version(parsed, layers, where)
    if found is not None:
        version, evidence = found
        parsed = replace(parsed, declared=True, evidence=evidence)
        if version == OTHER:
            return replace(parsed, format=gptq_v2.FORMAT)
    return replace(parsed, wraps=not parsed.symmetric and wraps(layers, parsed.bits))


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, shape: Shape) -> Read:
    from quant.checkpoint.gptq_layers import read_version

    return read_version(tensors, parsed, layer, shape, VERSION)


def refuses(scheme: Scheme, _layer: StoredLayer | None) -> str | None:
    if scheme.bits not in gptq.READERS_BITS:
        return (
            f"has {scheme.bits} bits, which no reader of {FORMAT.name} supports (they read "
            f"{', '.join(map(str, gptq.READERS_BITS))}): export to gptq-v2 for Bitsweep, or to "
            "compressed-tensors."
        )
    return refuse_levels(scheme, FORMAT.name)


def write_layer(weight: QuantizedWeight, layer: StoredLayer) -> Packed:
    """Return the tensors of a layer; ArtifactError for zero-points of 0 (readers disagree)."""
    from quant.checkpoint.gptq_layers import subtract_one

    return subtract_one(gptq.write_layer(weight, layer), weight, layer.name)


def describe(model: QuantizedModel) -> dict[str, Any]:
    return gptq.describe(model, gptq.METHOD, VERSION.checkpoint_format)


FORMAT = Format(
    name="gptq-v1",
    title="GPTQ v1",
    quant_method=gptq.METHOD,
    variant=f"checkpoint_format {VERSION.checkpoint_format}",
    readers="AutoGPTQ, GPTQModel, vLLM, transformers through GPTQModel",
    parts=gptq.PARTS,
    codes="qweight",
    scales="scales",
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    writer=Writer(
        refuses=refuses,
        entries=gptq.entries,
        write_layer=write_layer,
        describe=describe,
        notes=gptq.notes,
        mixes=True,
    ),
    config_file="quantize_config.json",
    settle=settle,
    zeros_of_0="stored as -1: tools decode these in different ways; here they wrap",
)
