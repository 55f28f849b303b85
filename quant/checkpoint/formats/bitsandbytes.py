"""bitsandbytes, as transformers saves it: NF4 and FP4 in blocks, or LLM.int8 in rows.

A layer [out, in] of 4 bits is stored as

    weight                   [out * in / 2, 1] of uint8 (or other types of as many bytes): two codes
                             a byte, the first in the high half, row after row
    weight.absmax            float32 [blocks], the largest magnitude of a block of (64) weights;
                             blocks run on from row to row. With double quantization uint8, and
    weight.nested_absmax     float32, the scales of blocks of (256) absmax
    weight.nested_quant_map  float32 [256], what their codes stand for
    weight.quant_map         float32 [16], the table of the levels
    weight.quant_state.bitsandbytes__nf4 (or fp4)
                             JSON: quant_type, blocksize, shape, dtype, nested_blocksize, ...

and of 8 bits as weight int8 [out, in], SCB float32 [out] and weight_format 0. Values are
table[code] * absmax and weight * SCB / 127.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from quant.checkpoint.bnb import fp4, int8, state
from quant.checkpoint.formats.base import CheckpointFormat, Config, Format, read_flag, validated
from quant.errors import ArtifactError
from quant.levels import nf4

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Read, Shape, Tensors

METHOD = "bitsandbytes"
FOUR_BITS, EIGHT_BITS = "load_in_4bit", "load_in_8bit"
# Levels by bnb_4bit_quant_type, and the rank of every code in the files.
TYPES = {"nf4": nf4, "fp4": fp4}
RANKS = {"nf4": tuple(range(16)), "fp4": fp4.RANKS}
_LEVELS = {"nf4": nf4.LEVELS.name, "fp4": fp4.__name__}
_STATES = tuple(f"{state.KEY}{kind}" for kind in TYPES)


def matches(config: Config) -> bool:
    """Whether it is bitsandbytes' own; its first configurations have no quant_method."""
    early = "quant_method" not in config and any(config.get(k) for k in (FOUR_BITS, EIGHT_BITS))
    return early or config.get("quant_method") == METHOD


def parse(config: Config, where: str) -> CheckpointFormat:
    four = read_flag(config, FOUR_BITS, where, default=False)
    eight = read_flag(config, EIGHT_BITS, where, default=False)
    if four == eight:
        raise ArtifactError(
            f"{where} has {FOUR_BITS}={str(four).lower()} and {EIGHT_BITS}={str(eight).lower()}; "
            "expected one of them to be true."
        )
    if eight:
        return _parsed(_OF_8_BITS, 8, int8.__name__, where)
    kind = config.get("bnb_4bit_quant_type", "fp4")  # the default of transformers is not stored
    if kind not in TYPES:
        raise ArtifactError(
            f"{where}.bnb_4bit_quant_type={kind!r} cannot be read; only {', '.join(TYPES)} can."
        )
    return _parsed(FORMAT, 4, _LEVELS[kind], where)


def _parsed(format: Format, bits: int, levels: str, where: str) -> CheckpointFormat:
    parsed = CheckpointFormat(
        format=format,
        bits=bits,
        group_size=None,  # of 4 bits `settle` finds it
        symmetric=False,
        act_order=False,
        levels=levels,
        scale_dtype="float32",
        producer=METHOD,
    )
    return validated(parsed, where)


def settle(parsed: CheckpointFormat, layers: Mapping[str, Tensors], where: str) -> CheckpointFormat:
    """Take the size of the blocks from the layers, which alone say it."""
    kind = _kind(parsed)
    name = f"{state.KEY}{kind}"
    told = [(layer, parts[name]) for layer, parts in layers.items() if name in parts]
    if not told:
        layer = next(iter(layers))
        raise ArtifactError(
            f"{where}: tensor {layer}.{name} is missing, which says how the layer was quantized; "
            "the checkpoint is incomplete, or its bnb_4bit_quant_type is wrong."
        )
    first = state.parse(told[0][1], told[0][0], kind)
    nested = ", absmax in 8 bits (double quantization)" if first.nested else ""
    return replace(
        parsed,
        group_size=first.blocksize,
        evidence=f"blocks of {first.blocksize} weights through the rows{nested}",
    )


def zero_points(_parsed: CheckpointFormat) -> str:
    return "none: levels around 0, times the largest magnitude"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    from quant.checkpoint.bnb.layers import read_4bit

    kind = _kind(parsed)
    return read_4bit(tensors, parsed, layer, kind, TYPES[kind].TABLE, RANKS[kind])


def read_8bit_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    from quant.checkpoint.bnb.layers import read_8bit

    return read_8bit(tensors, parsed, layer)


def _kind(parsed: CheckpointFormat) -> str:
    return next(kind for kind, levels in _LEVELS.items() if levels == parsed.levels)


FORMAT = Format(
    name="bitsandbytes",
    title="bitsandbytes",
    quant_method=METHOD,
    variant=f"{FOUR_BITS} with nf4 or fp4, or {EIGHT_BITS}",
    readers="transformers with bitsandbytes, vLLM; Bitsweep reads it and does not write it",
    parts=(
        "weight", "weight.absmax", "weight.nested_absmax", "weight.nested_quant_map",
        "weight.quant_map", *_STATES,
    ),
    codes="weight",
    marks=("weight.absmax", "weight.quant_map", *_STATES),
    scales=None,
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    settle=settle,
    counts_files=True,
)  # fmt: skip
_OF_8_BITS = replace(
    FORMAT,
    parts=("weight", "SCB", "weight_format"),
    marks=("SCB", "weight_format"),
    read_layer=read_8bit_layer,
    settle=None,
)
