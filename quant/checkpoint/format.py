"""quantization_config: what a checkpoint says about itself, read strictly and written plainly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quant.errors import ArtifactError
from quant.scheme import BITS, GRIDS, SCALE_DTYPES, Scheme, SchemeError

TERNARY = "bitsweep_ternary"
READABLE = "gptq (checkpoint_format gptq or gptq_v2), awq (version gemm) and " + TERNARY


@dataclass(frozen=True)
class CheckpointFormat:
    """The format of a quantized checkpoint.

    kind        "gptq" (v1: zero-points stored minus one), "gptq_v2" (true zero-points),
                "bitsweep_ternary" or "awq".
    group_size  columns a group; None is one group per row (-1 in the file).
    act_order   desc_act: the columns of a group may lie apart, and g_idx says where.
    grid        "minmax" or "mse", from Bitsweep's own metadata; "minmax" when it is not said.
    producer    meta.producer, empty when it is not said.
    """

    kind: str
    bits: int
    group_size: int | None
    symmetric: bool
    act_order: bool
    grid: str = "minmax"
    producer: str = ""

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
    scheme: Scheme, layers: Iterable[str], act_order: bool, method: Mapping[str, Any], producer: str
) -> dict[str, Any]:
    """The quantization_config that Bitsweep writes for a model whose `layers` are quantized.

    Ternary levels have another quant_method, because a loader of GPTQ would read them as a
    uniform grid.
    """
    layers = list(layers)
    # "model.layers.3.mlp.down_proj" is "mlp.down_proj" inside its block: each name once, in order.
    inside = dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", layer) for layer in layers)
    return {
        "quant_method": TERNARY if scheme.ternary else "gptq",
        "checkpoint_format": TERNARY if scheme.ternary else "gptq_v2",
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


def parse(config: Mapping[str, Any], source: str) -> CheckpointFormat:
    """Read a quantization_config; ArtifactError naming the field, its value and what is readable.

    source names the checkpoint in messages.
    """
    where = f"{source}: quantization_config"
    method = config.get("quant_method", "gptq" if "checkpoint_format" in config else None)
    if method == "awq":
        return _parse_awq(config, where)
    if method not in ("gptq", TERNARY):
        raise ArtifactError(f"{where}.quant_method={method!r} cannot be read; only {READABLE} can.")
    kind = config.get("checkpoint_format", TERNARY if method == TERNARY else "gptq")
    if kind not in ((TERNARY,) if method == TERNARY else ("gptq", "gptq_v2")):
        raise ArtifactError(
            f"{where}.checkpoint_format={kind!r} with quant_method={method!r} cannot be read; only "
            f"{READABLE} can."
        )
    if config.get("pack_dtype", "int32") not in ("int32", torch.int32):
        raise ArtifactError(
            f"{where}.pack_dtype={config['pack_dtype']!r} cannot be read; codes must be packed "
            "into int32."
        )
    # GPTQModel's "dynamic" overrides settings per layer: "+:pattern" or "pattern". "-:pattern"
    # only leaves layers in full precision, which the names of the tensors say as well.
    overrides = [key for key in config.get("dynamic") or {} if not key.startswith("-:")]
    if overrides:
        raise ArtifactError(
            f"{where}.dynamic gives layers settings of their own ({overrides[0]!r}); only "
            "checkpoints with one setting for all layers can be read."
        )
    meta = config.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    parsed = CheckpointFormat(
        kind=kind,
        bits=_bits(config, where),
        group_size=_group_size(config, where),
        symmetric=_flag(config, "sym", where, default=False if kind == TERNARY else None),
        act_order=_flag(config, "desc_act", where, default=False),
        grid=str(meta["grid"]) if meta.get("grid") in GRIDS else "minmax",
        producer=str(meta.get("producer", "")),
    )
    return _validated(parsed, where)


def _parse_awq(config: Mapping[str, Any], where: str) -> CheckpointFormat:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise ArtifactError(
            f"{where}.version={version!r} is another packing of AWQ; only 'gemm' can be read."
        )
    if config.get("bits") != 4:
        raise ArtifactError(f"{where}.bits={config.get('bits')!r}: AWQ is read with 4 bits only.")
    if not _flag(config, "zero_point", where, default=True):
        raise ArtifactError(f"{where}.zero_point=false cannot be read; only AWQ with zeros can.")
    parsed = CheckpointFormat(
        kind="awq", bits=4, group_size=_group_size(config, where), symmetric=False, act_order=False
    )
    return _validated(parsed, where)


def _validated(parsed: CheckpointFormat, where: str) -> CheckpointFormat:
    try:
        parsed.scheme(torch.float16)
    except SchemeError as error:
        raise ArtifactError(f"{where} makes no scheme: {error}") from error
    return parsed


def _bits(config: Mapping[str, Any], where: str) -> int:
    bits = config.get("bits")
    if isinstance(bits, bool) or bits not in BITS:
        raise ArtifactError(
            f"{where}.bits={bits!r} cannot be read; expected one of {', '.join(map(str, BITS))}."
        )
    return int(bits)


def _group_size(config: Mapping[str, Any], where: str) -> int | None:
    size = config.get("group_size")
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
        raise ArtifactError(
            f"{where}.group_size={size!r} cannot be read; expected a number of columns, or -1 for "
            "one group per row."
        )
    return None if size == -1 else size


def _flag(config: Mapping[str, Any], name: str, where: str, default: bool | None) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ArtifactError(f"{where}.{name}={value!r} cannot be read; expected true or false.")
    return value


def scale_dtypes() -> tuple[torch.dtype, ...]:
    """The types that scales may be stored in."""
    return tuple(getattr(torch, name) for name in SCALE_DTYPES)
