"""torchao, as transformers 5 saves it in safetensors (torchao.prototype.safetensors).

A layer [out, in] of int8 or intx weights is stored as

    _weight_qdata        int8 [out, in], codes of any width around 0, one a byte
    _weight_scale        [out, groups]
    _weight_zero_point   int8 [out, groups]; early versions leave it out where all are 0

with values (code - zero) * scale, and of plain int4 as

    _weight_qdata        int8 [out, in / 2]: two codes a byte, the first in the low half, in two's
                         complement
    _weight_scale        [groups, out]
    _weight_zero_point   [groups, out] in the type of the scales: a weight, not a code

with values code * scale + zero. The headers of the files describe every weight in JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from quant.checkpoint.formats.base import CheckpointFormat, Config, Format, read_flag, validated
from quant.checkpoint.torchao import int4, metadata, settings
from quant.errors import ArtifactError
from quant.levels import uniform

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Read, Shape, Tensors

METHOD = "torchao"


def matches(config: Config) -> bool:
    return config.get("quant_method") == METHOD


def parse(config: Config, where: str) -> CheckpointFormat:
    if read_flag(config, "include_input_output_embeddings", where, default=False):
        raise ArtifactError(
            f"{where}.include_input_output_embeddings=true: quantized embeddings are not read; "
            "quantize again without them."
        )
    said = settings.parse(config.get("quant_type"), f"{where}.quant_type")
    activations = "; activations are not rounded here, though it asks for int8"
    parsed = CheckpointFormat(
        format=_INT4 if said.offset else FORMAT,
        bits=said.bits,
        group_size=said.group_size,
        symmetric=said.symmetric,
        act_order=False,
        levels=int4.__name__ if said.offset else uniform.LEVELS.name,
        producer=METHOD,
        evidence=said.kind + (activations if said.activations else ""),
    )
    return validated(parsed, where)


def zero_points(parsed: CheckpointFormat) -> str:
    return "all 0, of signed codes" if parsed.symmetric else "as int8, of signed codes"


def zero_points_of_int4(_parsed: CheckpointFormat) -> str:
    return "stored as weights: code * scale + zero"


def check_metadata(
    parsed: CheckpointFormat, layers: Iterable[str], said: Mapping[str, str], where: str
) -> None:
    offset = parsed.levels == int4.__name__
    metadata.check(layers, said, where, parsed.bits, parsed.group_size, offset)


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    from quant.checkpoint.torchao.layers import read_int

    return read_int(tensors, parsed, layer)


def read_int4_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    from quant.checkpoint.torchao.layers import read_int4

    return read_int4(tensors, parsed, layer)


FORMAT = Format(
    name="torchao",
    title="torchao",
    quant_method=METHOD,
    variant="int8, intx and plain int4 weights in safetensors",
    readers="transformers with torchao, vLLM; Bitsweep reads it and does not write it",
    parts=(
        "_weight_qdata", "_weight_scale", "_weight_zero_point", "_weight_scale_and_zero",
        "_weight_act_pre_scale", "_weight_act_quant_scale", "_weight_act_quant_zero_point",
    ),
    codes="_weight_qdata",
    marks=("_weight_qdata", "_weight_scale", "_weight_zero_point"),
    scales="_weight_scale",
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    counts_files=True,
    check_metadata=check_metadata,
    pickled="save it again with transformers 5 and torchao 0.18 or later, which write safetensors",
)  # fmt: skip
_INT4 = replace(FORMAT, read_layer=read_int4_layer, zero_points=zero_points_of_int4)
