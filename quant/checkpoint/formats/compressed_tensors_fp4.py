"""NVFP4 and MXFP4 of compressed-tensors (vLLM's LLM Compressor), read.

A layer [out, in] of "nvfp4-pack-quantized" is stored as

    weight_packed        uint8 [out, in / 2]: two codes of E2M1 a byte, the first in the low half
    weight_scale         float8_e4m3fn [out, in / 16]
    weight_global_scale  float32 [1], by which the scales are divided
    input_global_scale   float32 [1] if inputs are quantized too; not used here

and of "mxfp4-pack-quantized" as weight_packed and weight_scale uint8 [out, in / 32], exponents of
two plus 127. Values are level * (weight_scale / weight_global_scale) and level * 2^(exponent -
127). The library computes them in float32, rounded once to bfloat16.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quant.checkpoint.compressed_settings import (
    METHOD,
    MXFP4,
    NVFP4,
    Group,
    is_floating,
    read_groups,
)
from quant.checkpoint.formats.base import CheckpointFormat, Config, Format, validated
from quant.checkpoint.meta import read_meta
from quant.errors import ArtifactError
from quant.levels import mxfp4, nvfp4

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Read, Shape, Tensors

# Levels by the format that a group of layers is stored in, and what the library says of them.
KINDS = {NVFP4: nvfp4, MXFP4: mxfp4}
STRATEGIES = {NVFP4: "tensor_group", MXFP4: "group"}
INPUTS = "inputs, which quantization_config quantizes too, are not quantized here"
SCALES = {NVFP4: "torch.float8_e4m3fn", MXFP4: "torch.uint8"}


def parse(config: Config, where: str) -> CheckpointFormat:
    found, head = read_groups(config, where)
    groups = [found] if head is None else [found, head]
    for each in groups:
        _check(each)
    version = config.get("version")
    inputs = any(each.inputs for each in groups)
    kind = KINDS[found.stored]
    parsed = CheckpointFormat(
        format=_INPUTS_TOO if inputs else FORMAT,
        bits=4,
        group_size=kind.GROUP,
        symmetric=False,  # its levels have no zero-point
        act_order=False,
        levels=kind.LEVELS.name,
        producer=read_meta(config)[1] or (f"{METHOD} {version}" if version else ""),
        evidence=INPUTS if inputs else "",
    )
    return validated(parsed, where)


def _check(group: Group) -> None:
    """Raise ArtifactError for settings that are not those of the format."""
    for key, expected in (
        ("num_bits", (4,)),
        ("type", ("float",)),
        ("group_size", (KINDS[group.stored].GROUP,)),
        ("strategy", (STRATEGIES[group.stored],)),
        ("symmetric", (True, None)),
        ("dynamic", (False, None)),
        ("scale_dtype", (SCALES[group.stored], None)),
        ("actorder", (None, False, "weight", "static")),  # none of them moves columns
    ):
        value = group.weights.get(key)
        if not any(type(value) is type(each) and value == each for each in expected):
            raise ArtifactError(
                f"{group.where}.{key}={value!r} cannot be read; {group.stored!r} has "
                f"{expected[0]!r}."
            )


def zero_points(_parsed: CheckpointFormat) -> str:
    return "none: levels around 0"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    from quant.checkpoint.fp4_layers import read_mxfp4, read_nvfp4

    read = {nvfp4.LEVELS.name: read_nvfp4, mxfp4.LEVELS.name: read_mxfp4}[str(parsed.levels)]
    return read(tensors, parsed, layer)


FORMAT = Format(
    name="compressed-tensors-fp4",
    title="compressed-tensors FP4",
    quant_method=METHOD,
    variant=f"format {NVFP4} or {MXFP4}",
    readers="vLLM, transformers with compressed-tensors; Bitsweep reads it and does not write it",
    parts=("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"),
    codes="weight_packed",
    scales=None,
    matches=is_floating,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    counts_files=True,
)
# Tables mark a checkpoint whose inputs its producer quantizes too.
_INPUTS_TOO = replace(FORMAT, title="compressed-tensors FP4, weights alone")
