"""HQQ (Half-Quadratic Quantization, mobiusml.github.io/hqq_blog), as transformers saves it.

A layer [out, in] is reshaped to [groups, group_size] (axis 1, groups along the inputs) or
[group_size, groups] (axis 0, along the outputs) and stored as

    W_q      codes of this matrix, packed by rows (quant.checkpoint.hqq.packing): uint8, or int32
             for 3 bits; with view_as_float these bytes as numbers of the compute type
    scale    [groups, 1] or [1, groups], in the compute type
    zero     the same, with fractions
    bias     [out], if the layer has one
    shape    int64 [2], (out, in)

and its settings as tensors of one number or of letters: nbits, group_size, axis, packing,
compute_dtype, view_as_float and others. Values are (code - zero) * scale in the compute type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quant.checkpoint.formats.base import CheckpointFormat, Config, Format, validated
from quant.errors import ArtifactError

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Read, Shape, Tensors

METHOD = "hqq"
PARAMETERS = "weight_quant_params"
# By nbits: levels, bits of a code here, packing. 5 and 6 bits lie in whole bytes.
WIDTHS: dict[float, tuple[str, int, str]] = {
    8: ("hqq", 8, "8bit_u8"),
    6: ("hqq", 6, "8bit_u8"),
    5: ("hqq", 5, "8bit_u8"),
    4: ("hqq", 4, "4bit_u8"),
    3: ("hqq", 3, "3bit_32"),
    2: ("hqq", 2, "2bit_u8"),
    1.58: ("quant.checkpoint.hqq.ternary", 2, "2bit_u8"),
    1: ("quant.checkpoint.hqq.binary", 2, "1bit_u8"),
}


def matches(config: Config) -> bool:
    return config.get("quant_method") == METHOD


def parse(config: Config, where: str) -> CheckpointFormat:
    said = _parameters(config, where)
    where = f"{where}.quant_config.{PARAMETERS}"
    nbits = said.get("nbits")
    if isinstance(nbits, bool) or nbits not in list(WIDTHS):
        raise ArtifactError(
            f"{where}.nbits={nbits!r} cannot be read; only {', '.join(f'{n:g}' for n in WIDTHS)} "
            "can."
        )
    size = said.get("group_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ArtifactError(
            f"{where}.group_size={size!r} cannot be read; expected a number of weights, or null "
            "for one group per row."
        )
    axis = said.get("axis")
    if isinstance(axis, bool) or axis not in list(_FORMATS):
        raise ArtifactError(f"{where}.axis={axis!r} cannot be read; expected 0 or 1.")
    if said.get("channel_wise", True) is not True:
        raise ArtifactError(
            f"{where}.channel_wise={said['channel_wise']!r}: a single scale for a whole layer is "
            "not read; quantize with groups (channel_wise=true)."
        )
    levels, bits, _ = WIDTHS[nbits]
    parsed = CheckpointFormat(
        format=_FORMATS[axis],
        bits=bits,
        group_size=size,
        symmetric=False,
        act_order=False,
        levels=levels,
        producer=METHOD,
        evidence=_groups(size, axis),
    )
    return validated(parsed, where)


def _parameters(config: Config, where: str) -> Mapping[str, Any]:
    """Return the parameters of all layers; a configuration may have them by kind of layer."""
    said = config.get("quant_config")
    if isinstance(said, Mapping) and PARAMETERS in said:
        found = [("", said[PARAMETERS])]
    elif isinstance(said, Mapping) and said:
        found = [
            (f" of {kind}", each.get(PARAMETERS) if isinstance(each, Mapping) else None)
            for kind, each in said.items()
        ]
    else:
        found = [("", None)]
    for kind, each in found:
        if not isinstance(each, Mapping):
            raise ArtifactError(
                f"{where}.quant_config{kind} has no {PARAMETERS}, which say how layers were "
                "quantized: use the config.json of the original checkpoint."
            )
        other = [key for key in _DECISIVE if each.get(key) != found[0][1].get(key)]
        if other:
            raise ArtifactError(
                f"{where}.quant_config{kind} says {other[0]}={each.get(other[0])!r}, but"
                f"{found[0][0]} {other[0]}={found[0][1].get(other[0])!r}: checkpoints of several "
                "schemes are not read; make one with a single scheme."
            )
    return found[0][1]  # type: ignore[no-any-return]


def _groups(size: int | None, axis: int) -> str:
    row, along = ("row", "inputs") if axis == 1 else ("column", "outputs")
    each = f"groups of {size} weights" if size else f"one group a {row}"
    return f"{each} along the {along} (axis {axis})"


def zero_points(_parsed: CheckpointFormat) -> str:
    return "stored with fractions: (code - zero) * scale"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    return _read(tensors, parsed, layer, axis=1)


def read_layer_along_outputs(
    tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape
) -> Read:
    return _read(tensors, parsed, layer, axis=0)


def _read(tensors: Tensors, parsed: CheckpointFormat, layer: str, axis: int) -> Read:
    from quant.checkpoint.hqq.layers import Settings, read

    nbits, packing = next(
        (nbits, packing)
        for nbits, (levels, bits, packing) in WIDTHS.items()
        if (levels, bits) == (parsed.levels, parsed.bits)
    )
    return read(tensors, parsed, Settings(nbits, packing, parsed.group_size, axis), layer)


# What must be the same in all layers: it says what codes mean.
_DECISIVE = ("nbits", "group_size", "axis", "channel_wise")
FORMAT = Format(
    name="hqq",
    title="HQQ",
    quant_method=METHOD,
    readers="transformers 4 with hqq, vLLM; Bitsweep reads it and does not write it",
    parts=(
        "W_q", "scale", "zero", "shape", "nbits", "group_size", "axis", "packing",
        "compute_dtype", "view_as_float", "unpack_view_dtype", "channel_wise", "quant_scale",
        "quant_zero", "optimize", "round_zero", "offload_meta", "encoded_state_dict",
        "stores_quant_config", "scale_q", "zero_q", "zero_scale",
    ),
    codes="W_q",
    marks=("W_q", "packing", "unpack_view_dtype"),
    scales="scale",
    matches=matches,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    counts_files=True,
)  # fmt: skip
_FORMATS = {1: FORMAT, 0: replace(FORMAT, read_layer=read_layer_along_outputs)}
