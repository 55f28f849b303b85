"""What a quantized checkpoint is, and the strict reading of one value of its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quant.errors import ArtifactError
from quant.scheme import BITS, SCALE_DTYPES, Scheme, SchemeError

GPTQ_V1 = "gptq"
GPTQ_V2 = "gptq_v2"
TERNARY = "bitsweep_ternary"
AWQ = "awq"
COMPRESSED_TENSORS = "compressed-tensors"
# As people call them, in tables and messages.
NAMES = {
    GPTQ_V1: "GPTQ v1",
    GPTQ_V2: "GPTQ v2",
    TERNARY: "Bitsweep ternary",
    AWQ: "AWQ gemm",
    COMPRESSED_TENSORS: "compressed-tensors",
}


@dataclass(frozen=True)
class CheckpointFormat:
    """The format of a quantized checkpoint.

    kind        "gptq" (v1: zero-points stored minus one), "gptq_v2" (true zero-points),
                "bitsweep_ternary", "awq" or "compressed-tensors" (pack-quantized).
    group_size  columns a group; None is one group per row (-1 in the file).
    act_order   the columns of a group may lie apart, and a tensor says where (g_idx).
    grid        "minmax" or "mse", from Bitsweep's own metadata; "minmax" when it is not said.
    producer    who wrote it, empty when it is not said.
    declared    whether a GPTQ checkpoint says its version; one that does not is version 1 unless
                symmetric zero-points show that it is version 2.
    """

    kind: str
    bits: int
    group_size: int | None
    symmetric: bool
    act_order: bool
    grid: str = "minmax"
    producer: str = ""
    declared: bool = True

    @property
    def name(self) -> str:
        """The format as people call it: "GPTQ v1"."""
        return NAMES[self.kind]

    @property
    def zero_points(self) -> str:
        """How sure the meaning of the stored zero-points is, in words, for records and people."""
        if self.kind == COMPRESSED_TENSORS:
            return "none: symmetric" if self.symmetric else "stored as they are"
        if self.kind == AWQ:
            return "stored as they are"
        if self.kind == TERNARY:
            return "none: two scales a group"
        version = "version 1 (stored minus one)" if self.kind == GPTQ_V1 else "version 2 (as is)"
        if not self.declared:
            return (
                "checkpoint_format not declared: read from the symmetric zero-points"
                if self.symmetric
                else f"{version} assumed: checkpoint_format not declared, nothing confirms it"
            )
        sure = "the symmetric ones confirm it" if self.symmetric else "asymmetric: trusted"
        return f"{version} declared, {sure}"

    def scheme(self, scale_dtype: torch.dtype) -> Scheme:
        """The scheme of a layer whose scales are stored as scale_dtype."""
        return Scheme(
            bits=self.bits,
            group_size=self.group_size,
            symmetric=self.symmetric,
            levels="ternary" if self.kind == TERNARY else "uniform",
            grid=self.grid,
            scale_dtype=str(scale_dtype).removeprefix("torch."),
        )


def describe(
    scheme: Scheme,
    layers: Iterable[str],
    act_order: bool,
    method: Mapping[str, Any],
    producer: str,
    version: str = GPTQ_V2,
) -> dict[str, Any]:
    """The quantization_config of a GPTQ checkpoint of a model whose `layers` are quantized.

    Ternary levels have another quant_method, because a loader of GPTQ would read them as a
    uniform grid.
    """
    layers = list(layers)
    # "model.layers.3.mlp.down_proj" is "mlp.down_proj" inside its block: each name once, in order.
    inside = dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", layer) for layer in layers)
    return {
        "quant_method": TERNARY if scheme.ternary else "gptq",
        "checkpoint_format": TERNARY if scheme.ternary else version,
        "bits": scheme.bits,
        "group_size": scheme.group_size or -1,
        "sym": scheme.symmetric,
        "desc_act": act_order,
        "static_groups": bool(method.get("static_groups", False)),
        "true_sequential": bool(method.get("true_sequential", False)),
        "lm_head": "lm_head" in layers,
        "pack_dtype": "int32",
        "modules_in_block_to_quantize": [list(inside)],
        "meta": {"producer": producer, "grid": scheme.grid, "method": dict(method)},
    }


def validated(parsed: CheckpointFormat, where: str) -> CheckpointFormat:
    """The same format; ArtifactError when its values make no scheme."""
    try:
        parsed.scheme(torch.float16)
    except SchemeError as error:
        raise ArtifactError(f"{where} makes no scheme: {error}") from error
    return parsed


def read_bits(config: Mapping[str, Any], where: str, key: str = "bits") -> int:
    """A bit width that Bitsweep has."""
    bits = config.get(key)
    if isinstance(bits, bool) or bits not in BITS:
        raise ArtifactError(
            f"{where}.{key}={bits!r} cannot be read; expected one of {', '.join(map(str, BITS))}."
        )
    return int(bits)


def read_group_size(config: Mapping[str, Any], where: str) -> int | None:
    """Columns of a group; None for one group per row (-1 in the file)."""
    size = config.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
        raise ArtifactError(
            f"{where}.group_size={size!r} cannot be read; expected a number of columns, or -1 for "
            "one group per row."
        )
    return None if size == -1 else size


def read_flag(config: Mapping[str, Any], name: str, where: str, default: bool | None) -> bool:
    """True or false; `default` stands for a key that is missing."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ArtifactError(f"{where}.{name}={value!r} cannot be read; expected true or false.")
    return value


def scale_dtypes() -> tuple[torch.dtype, ...]:
    """The types that scales may be stored in."""
    return tuple(getattr(torch, name) for name in SCALE_DTYPES)
