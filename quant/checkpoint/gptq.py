"""Configurations and tensors that the GPTQ versions and Bitsweep's own formats share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    QuantizedModel,
    StoredLayer,
    read_bits,
    read_flag,
    read_group_size,
    read_meta,
    validated,
)
from quant.errors import ArtifactError
from quant.levels import uniform
from quant.scheme import BITS, Scheme

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Entries
    from quant.linear import Packed
    from quant.weight import QuantizedWeight

METHOD = "gptq"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
# Bit widths that AutoGPTQ, GPTQModel and vLLM read.
READERS_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Version:
    """A version of GPTQ: its name in the file, and the number subtracted from zero-points."""

    checkpoint_format: str
    subtracted: int

    def symmetric_zero(self, bits: int) -> int:
        """Return the stored zero-point of symmetric grids in this version."""
        result: int = 2 ** (bits - 1) - self.subtracted
        return result


V1 = Version("gptq", 1)
V2 = Version("gptq_v2", 0)


def method_of(config: Config) -> Any:
    """Return quant_method; early configurations have only a checkpoint_format."""
    return config.get("quant_method", METHOD if "checkpoint_format" in config else None)


def declared_versions(config: Config) -> dict[str, Any]:
    """Return the declared version by key; transformers writes two keys."""
    return {key: config[key] for key in ("checkpoint_format", "format") if config.get(key)}


def parse(
    config: Config,
    where: str,
    format: Format,
    versions: Sequence[str],
    *,
    bits: Sequence[int] = BITS,
    symmetric: bool | None = None,
    levels: str = uniform.LEVELS.name,
) -> CheckpointFormat:
    """Parse a GPTQ configuration.

    versions are the accepted values of the version keys; symmetric is the meaning of a missing sym.
    The result is `declared` if one of several versions is present.
    """
    declared = declared_versions(config)
    for key, value in declared.items():
        if value not in versions:
            raise ArtifactError(
                f"{where}.{key}={value!r} with quant_method={format.quant_method!r} cannot be "
                f"read; only {' and '.join(versions)} can."
            )
    if len(set(declared.values())) > 1:
        raise ArtifactError(
            f"{where} has checkpoint_format={declared['checkpoint_format']!r} and format="
            f"{declared['format']!r}, which store zero-points differently: remove the wrong one "
            "from config.json."
        )
    if str(config.get("pack_dtype", "int32")).removeprefix("torch.") != "int32":
        raise ArtifactError(
            f"{where}.pack_dtype={config['pack_dtype']!r} cannot be read; codes must be packed "
            "into int32."
        )
    # GPTQModel's "dynamic" overrides settings per layer: "+:pattern" or "pattern". "-:pattern"
    # leaves layers in full precision, which the names of the tensors also show.
    overrides = [key for key in config.get("dynamic") or {} if not key.startswith("-:")]
    if overrides:
        raise ArtifactError(
            f"{where}.dynamic overrides the settings of some layers ({overrides[0]!r}); only "
            "checkpoints with one setting for all layers can be read."
        )
    grid, producer = read_meta(config)
    parsed = CheckpointFormat(
        format=format,
        bits=read_bits(config, where, allowed=bits),
        group_size=read_group_size(config, where),
        symmetric=read_flag(config, "sym", where, default=symmetric),
        act_order=read_flag(config, "desc_act", where, default=False),
        levels=levels,
        grid=grid,
        producer=producer,
        declared=bool(declared) or len(versions) == 1,
    )
    return validated(parsed, where)


def zero_points(parsed: CheckpointFormat, version: str) -> str:
    """Describe how the version of the stored zero-points is known; `version` is its description."""
    if not parsed.declared:
        return "checkpoint_format not declared"
    if parsed.evidence:
        said = f"{version}, found in the tensors: checkpoint_format not declared"
    else:
        sure = "the symmetric ones confirm it" if parsed.symmetric else "asymmetric: trusted"
        said = f"{version} declared, {sure}"
    return f"{said}; some are stored as -1 and read as 0" if parsed.wraps else said


def entries(scheme: Scheme, layer: StoredLayer) -> Entries:
    """Return shape and dtype of every tensor of a layer, with g_idx, which readers require."""
    from quant.linear import packed_dtypes, packed_shapes

    dtypes = packed_dtypes(scheme)
    return {
        name: (shape, dtypes[name])
        for name, shape in packed_shapes(scheme, layer.inputs, layer.outputs, g_idx=True).items()
    }


def write_layer(weight: QuantizedWeight, _layer: StoredLayer) -> Packed:
    """Return the tensors of a layer, with zero-points unchanged."""
    from quant.linear import pack

    return {**pack(weight), "g_idx": weight.column_groups().int()}


def describe(model: QuantizedModel, quant_method: str, checkpoint_format: str) -> dict[str, Any]:
    """Return the quantization_config of a model."""
    # "model.layers.3.mlp.down_proj" is "mlp.down_proj" inside its block: each name once, in order.
    inside = dict.fromkeys(re.sub(r"^.*?\.\d+\.", "", layer) for layer in model.layers)
    return {
        "quant_method": quant_method,
        "checkpoint_format": checkpoint_format,
        "bits": model.scheme.bits,
        "group_size": model.scheme.group_size or -1,
        "sym": model.scheme.symmetric,
        "desc_act": model.act_order,
        "static_groups": bool(model.method.get("static_groups", False)),
        "true_sequential": bool(model.method.get("true_sequential", False)),
        "lm_head": "lm_head" in model.layers,
        "pack_dtype": "int32",
        "modules_in_block_to_quantize": [list(inside)],
        "meta": model.meta(),
    }


def notes(scheme: Scheme, layers: Sequence[StoredLayer]) -> list[str]:
    """Return the limitations of GPTQ's readers for such layers, one sentence each."""
    found = []
    if scheme.scale_dtype != "float16":
        found.append(
            f"readers of GPTQ store scales as float16 and will round these {scheme.scale_dtype} "
            "scales; scheme.scale_dtype=float16 makes scales that they keep."
        )
    if scheme.bits not in READERS_BITS:
        found.append(
            f"only Bitsweep reads {scheme.bits} bits in this format; other tools read "
            f"{', '.join(map(str, READERS_BITS))}."
        )
    short = [layer for layer in layers if scheme.short_group(layer.inputs)]
    if short:
        found.append(
            f"{len(short)} layers end in a group of fewer than {scheme.group_size} columns (such "
            f"as {short[0].name} with {short[0].inputs} inputs): GPTQModel's PyTorch kernel takes "
            "them, vLLM and GPTQModel's other kernels refuse them."
        )
    return found
