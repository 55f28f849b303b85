"""quantization_config: what a checkpoint says about itself, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from quant.checkpoint.format import (
    AWQ,
    COMPRESSED_TENSORS,
    GPTQ_V1,
    GPTQ_V2,
    TERNARY,
    CheckpointFormat,
    read_bits,
    read_flag,
    read_group_size,
    validated,
)
from quant.checkpoint.formats.compressed_tensors import parse_config as parse_compressed_tensors
from quant.errors import ArtifactError
from quant.scheme import GRIDS

READABLE = (
    "gptq (checkpoint_format gptq or gptq_v2), awq (version gemm), compressed-tensors (format "
    f"pack-quantized) and {TERNARY}"
)


def parse(config: Mapping[str, Any], source: str) -> CheckpointFormat:
    """Read a quantization_config; ArtifactError naming the field, its value and what is readable.

    source names the checkpoint in messages.
    """
    where = f"{source}: quantization_config"
    method = config.get("quant_method", "gptq" if "checkpoint_format" in config else None)
    if method == COMPRESSED_TENSORS:
        return parse_compressed_tensors(config, where)
    if method == "awq":
        return _parse_awq(config, where)
    if method in ("gptq", TERNARY):
        return _parse_gptq(config, where, method)
    raise ArtifactError(f"{where}.quant_method={method!r} cannot be read; only {READABLE} can.")


def _parse_gptq(config: Mapping[str, Any], where: str, method: str) -> CheckpointFormat:
    kind, declared = _version(config, where, method)
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
        bits=read_bits(config, where),
        group_size=read_group_size(config, where),
        symmetric=read_flag(config, "sym", where, default=False if kind == TERNARY else None),
        act_order=read_flag(config, "desc_act", where, default=False),
        grid=str(meta["grid"]) if meta.get("grid") in GRIDS else "minmax",
        producer=_producer(meta),
        declared=declared,
    )
    return validated(parsed, where)


def _version(config: Mapping[str, Any], where: str, method: str) -> tuple[str, bool]:
    """The version of the format, and whether the file says it (as checkpoint_format or format)."""
    allowed = (TERNARY,) if method == TERNARY else (GPTQ_V1, GPTQ_V2)
    said = {key: config[key] for key in ("checkpoint_format", "format") if config.get(key)}
    for key, value in said.items():
        if value not in allowed:
            raise ArtifactError(
                f"{where}.{key}={value!r} with quant_method={method!r} cannot be read; only "
                f"{READABLE} can."
            )
    if len(set(said.values())) > 1:
        raise ArtifactError(
            f"{where} says checkpoint_format={said['checkpoint_format']!r} and format="
            f"{said['format']!r}, which store zero-points differently: remove the wrong one from "
            "config.json."
        )
    return next(iter(said.values()), allowed[0]), bool(said) or method == TERNARY


def _producer(meta: Mapping[str, Any]) -> str:
    """meta.producer, or GPTQModel's list of quantizers ("gptqmodel:4.2.5")."""
    found = meta.get("producer") or meta.get("quantizer") or ""
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def _parse_awq(config: Mapping[str, Any], where: str) -> CheckpointFormat:
    # AutoAWQ calls it version, transformers format; AutoAWQ's own quant_config.json has w_bit and
    # q_group_size for bits and group_size.
    version = str(config.get("version") or config.get("format") or "gemm").lower()
    if version != "gemm":
        raise ArtifactError(
            f"{where}.version={version!r} is another packing of AWQ; only 'gemm' can be read."
        )
    renamed = {"bits": "w_bit", "group_size": "q_group_size"}
    config = {**{new: config[old] for new, old in renamed.items() if old in config}, **config}
    if config.get("bits") != 4:
        raise ArtifactError(f"{where}.bits={config.get('bits')!r}: AWQ is read with 4 bits only.")
    if not read_flag(config, "zero_point", where, default=True):
        raise ArtifactError(f"{where}.zero_point=false cannot be read; only AWQ with zeros can.")
    parsed = CheckpointFormat(
        kind=AWQ,
        bits=4,
        group_size=read_group_size(config, where),
        symmetric=False,
        act_order=False,
        producer=_producer(config.get("meta") or {}),
    )
    return validated(parsed, where)
