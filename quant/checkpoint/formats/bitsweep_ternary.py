"""Format for ternary levels {row minimum, 0, row maximum}, in the tensors of GPTQ.

Instead of zero-points a layer has scales_negative [groups, out]: code 0 means -scales_negative,
code 1 means 0 and code 2 means scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quant.checkpoint import gptq
from quant.checkpoint.formats import gptq_v2
from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    QuantizedModel,
    StoredLayer,
    Writer,
)
from quant.errors import ArtifactError
from quant.levels import ternary, uniform
from quant.scheme import Scheme

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Read, Shape, Tensors

# A separate quant_method, because a GPTQ loader would read the codes as a uniform grid.
METHOD = "bitsweep_ternary"
# Every second bit of a word of sixteen 2-bit codes.
_LOW_BITS = 0x55555555


def matches(config: Config) -> bool:
    return config.get("quant_method") == METHOD


def parse(config: Config, where: str) -> CheckpointFormat:
    return gptq.parse(
        config,
        where,
        FORMAT,
        (METHOD,),
        symmetric=False,
        levels=ternary.LEVELS.name,
        of_uniform=gptq_v2.FORMAT,
    )


def zero_points(_parsed: CheckpointFormat) -> str:
    return "none: two scales a group"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, shape: Shape) -> Read:
    from quant.checkpoint.gptq_layers import read

    found = read(tensors, parsed, layer, shape)
    qweight = tensors["qweight"]
    if bool((qweight & (qweight >> 1) & _LOW_BITS).any()):
        raise ArtifactError(
            f"{layer}.qweight holds code 3; ternary codes are 0, 1 and 2. The file is damaged."
        )
    return found


def refuses(scheme: Scheme, _layer: StoredLayer | None) -> str | None:
    if scheme.kind == ternary.LEVELS:
        return None
    fitting = "gptq-v2" if scheme.kind == uniform.LEVELS else "bitsweep"
    return (
        f"has {scheme.kind.name} levels, and {FORMAT.name} stores only ternary ones: export to "
        f"{fitting}, or quantize with a ternary scheme."
    )


def describe(model: QuantizedModel) -> dict[str, Any]:
    return gptq.describe(model, METHOD, METHOD)


def notes(_scheme: Scheme, _layers: Sequence[StoredLayer]) -> list[str]:
    return ["only Bitsweep reads ternary levels; other tools stop at the names of the files."]


FORMAT = Format(
    name="bitsweep-ternary",
    title="Bitsweep ternary",
    quant_method=METHOD,
    readers="Bitsweep alone",
    parts=("qweight", "scales", "scales_negative", "g_idx"),
    codes="qweight",
    scales="scales",
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    # transformers only warns about an unknown quant_method and would continue with random weights;
    # an unusual file name makes it stop.
    writer=Writer(
        refuses=refuses,
        entries=gptq.entries,
        write_layer=gptq.write_layer,
        describe=describe,
        notes=notes,
        own=True,
        mixes=True,
        stem="bitsweep-ternary",
    ),
    library="bitsweep",
)
