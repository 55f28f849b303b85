"""GPTQ version 2: zero-points are stored unchanged. The format of Bitsweep's artifacts."""

from __future__ import annotations

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

VERSION, OTHER = gptq.V2, gptq.V1


def matches(config: Config) -> bool:
    declared = gptq.declared_versions(config).values()
    return gptq.method_of(config) == gptq.METHOD and VERSION.checkpoint_format in declared


def parse(config: Config, where: str) -> CheckpointFormat:
    versions = (OTHER.checkpoint_format, VERSION.checkpoint_format)
    return gptq.parse(config, where, FORMAT, versions)


def zero_points(parsed: CheckpointFormat) -> str:
    return gptq.zero_points(parsed, "version 2 (as is)")


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, shape: Shape) -> Read:
    from quant.checkpoint.gptq_layers import read_version

    return read_version(tensors, parsed, layer, shape, VERSION)


def refuses(scheme: Scheme, _layer: StoredLayer | None) -> str | None:
    return refuse_levels(scheme, FORMAT.name)


def describe(model: QuantizedModel) -> dict[str, Any]:
    return gptq.describe(model, gptq.METHOD, VERSION.checkpoint_format)


FORMAT = Format(
    name="gptq-v2",
    title="GPTQ v2",
    quant_method=gptq.METHOD,
    variant=f"checkpoint_format {VERSION.checkpoint_format}",
    readers="GPTQModel, vLLM, transformers through GPTQModel",
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
        write_layer=gptq.write_layer,
        describe=describe,
        notes=gptq.notes,
        own=True,
        mixes=True,
    ),
)
