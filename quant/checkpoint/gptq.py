"""Configurations and tensors that the GPTQ versions and Bitsweep's own formats share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    validated,
)
from quant.checkpoint.layer_names import is_expression
from quant.checkpoint.meta import read_head_grid, read_meta, read_own_grid
from quant.errors import ArtifactError
from quant.fused import fused, split_note
from quant.head import means_head
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
# Settings in GPTQModel's configurations that layers may not have of their own: those of tensors.
_OF_TENSORS = ("format", "checkpoint_format", "quant_method", "method", "pack_dtype", "adapter")
# Layouts under GPTQ's names of tensors that are not read: what they are, and the next step.
UNREAD = {
    "gptq_p": "GPTQModel's planar layout, which cuts codes into planes of bits and is not read: "
    f"quantize again with 2, 3, 4 or 8 bits and format={V2.checkpoint_format!r}",
}


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
    of_uniform: Format | None = None,
) -> CheckpointFormat:
    """Parse a GPTQ configuration.

    versions are the accepted values of the version keys; symmetric is the meaning of a missing sym;
    of_uniform is as in `with_dynamic`.
    The result is `declared` if one of several versions is present.
    """
    declared = declared_versions(config)
    for key, value in declared.items():
        if value in list(UNREAD):
            raise ArtifactError(f"{where}.{key}={value!r} is {UNREAD[value]}.")
        if value not in versions:
            raise ArtifactError(
                f"{where}.{key}={value!r} with quant_method={format.quant_method!r} cannot be "
                f"read; only {' and '.join(versions)} can: quantize again with one of these."
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
    return validated(with_dynamic(parsed, config, where, bits, of_uniform), where)


def with_dynamic(
    layers: CheckpointFormat,
    config: Config,
    where: str,
    bits: Sequence[int] = BITS,
    of_uniform: Format | None = None,
) -> CheckpointFormat:
    """Return a format with the settings of the head and of layers that differ from `layers`.

    of_uniform is the format of a head with uniform levels, if the layers have others.
    GPTQModel's "dynamic" overrides settings per layer: "+:pattern" or "pattern", a regular
    expression that a name begins with; the first of several counts. "-:pattern" leaves layers in
    full precision, which the names of the tensors also show.
    """
    head: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {}
    for pattern, said in (config.get("dynamic") or {}).items():
        if pattern.startswith("-:"):
            continue
        where_said = f"{where}.dynamic[{pattern!r}]"
        pattern = pattern.removeprefix("+:")
        found = _overridden(said, layers, where_said, bits)
        if not means_head(pattern):
            name = _name_in(pattern, where_said)
            found["grid"] = read_own_grid(config, name)
            own[name] = {key: v for key, v in found.items() if v != getattr(layers, key)}
            continue
        if head:
            continue
        head = {**found, "grid": read_head_grid(config)}
        if said.get("levels", layers.levels) != layers.levels:
            if said["levels"] != uniform.LEVELS.name or of_uniform is None:
                raise ArtifactError(
                    f"{where_said}.levels={said['levels']!r} cannot be read; expected "
                    f"{uniform.LEVELS.name!r} or the levels of the layers."
                )
            head |= {"format": of_uniform, "levels": uniform.LEVELS.name}
    return replace(layers, head=head, own=own)


def _overridden(
    said: Any, layers: CheckpointFormat, where: str, bits: Sequence[int]
) -> dict[str, Any]:
    """Return the settings of the layers of one entry of "dynamic"."""
    if not isinstance(said, Mapping):
        raise ArtifactError(f"{where}={str(said)[:40]} cannot be read; expected settings by name.")
    odd = next((key for key in _OF_TENSORS if key in said), None)
    if odd is not None:
        raise ArtifactError(
            f"{where}.{odd}={str(said[odd])[:40]} cannot be read: layers of one checkpoint have "
            "tensors of one format; quantize again without it."
        )
    size = {"group_size": said.get("group_size", layers.group_size or -1)}
    return {
        "bits": read_bits({"bits": said.get("bits", layers.bits)}, where, allowed=bits),
        "group_size": read_group_size(size, where),
        "symmetric": read_flag(said, "sym", where, default=layers.symmetric),
        "act_order": read_flag(said, "desc_act", where, default=layers.act_order),
    }


def _name_in(pattern: str, where: str) -> str:
    """Return the full name of the layer that a pattern means, or the pattern from its beginning."""
    inside = pattern.removeprefix("^").removesuffix("$")
    name = inside.replace("\\", "")
    if pattern == _exactly(name) or (pattern == name and not is_expression(name)):
        return name
    try:
        re.compile(pattern)
    except re.error as error:
        raise ArtifactError(
            f"{where} names no layer and is no regular expression ({error}): correct config.json."
        ) from error
    return f"^(?:{pattern})"


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}$"


def dynamic_settings(model: QuantizedModel) -> dict[str, Any]:
    """Return the entry "dynamic" for layers, and a head, with settings of their own; or {}."""
    found = {}
    for name, scheme in [*model.own.items(), *([model.own_head] if model.own_head else ())]:
        settings: dict[str, Any] = {
            "bits": scheme.bits,
            "group_size": scheme.group_size or -1,
            "sym": scheme.symmetric,
        }
        if name == model.head:
            settings["desc_act"] = False
            if model.scheme.kind != uniform.LEVELS:  # a format that Bitsweep alone reads
                settings["levels"] = scheme.kind.name
        found[f"+:{_exactly(name)}"] = settings
    return {"dynamic": found} if found else {}


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
    if model.head is not None:  # vLLM reads a quantized head only if this list has it
        inside[model.head] = None
    return {
        "quant_method": quant_method,
        "checkpoint_format": checkpoint_format,
        "bits": model.scheme.bits,
        "group_size": model.scheme.group_size or -1,
        "sym": model.scheme.symmetric,
        "desc_act": model.act_order,
        "static_groups": bool(model.method.get("static_groups", False)),
        "true_sequential": bool(model.method.get("true_sequential", False)),
        "lm_head": model.head is not None,
        **dynamic_settings(model),
        "pack_dtype": "int32",
        "modules_in_block_to_quantize": [list(inside)],
        "meta": model.meta(),
    }


def notes(scheme: Scheme, layers: Sequence[StoredLayer]) -> list[str]:
    """Return the limitations of GPTQ's readers for such layers, one sentence each."""
    found = []
    every = scheme.every
    if len(every) > 1:
        split = split_note((each.name for each in layers), lambda name: scheme.of(name).name)
        readers = "GPTQModel reads" if split else "GPTQModel and vLLM read"
        found.append(
            f"{readers} layers of several schemes (dynamic), transformers through optimum one."
        )
        whole = any(scheme.of(each.name) != scheme.every[0] for each in layers if fused(each.name))
        if whole and not split:
            found.append(
                "vLLM finds the schemes of q, k, v, gate and up in dynamic only in releases that "
                "look up the parts of what it fuses; older ones take the main settings for them."
            )
        found += [split] if split else []
    if scheme.scale_dtype != "float16":
        found.append(
            f"readers of GPTQ store scales as float16 and will round these {scheme.scale_dtype} "
            "scales; scheme.scale_dtype=float16 makes scales that they keep."
        )
    odd = [str(each.bits) for each in every if each.bits not in READERS_BITS]
    if odd:
        found.append(
            f"only Bitsweep reads {' and '.join(odd)} bits in this format; other tools read "
            f"{', '.join(map(str, READERS_BITS))}."
        )
    if scheme.head is not None:
        found.append(
            "GPTQModel and vLLM read the quantized head (lm_head, dynamic); transformers through "
            "optimum reads only layers in blocks."
        )
    short = [layer for layer in layers if scheme.of(layer.name).short_group(layer.inputs)]
    if short:
        size = scheme.of(short[0].name).group_size
        found.append(
            f"{len(short)} layers end in a group of fewer than {size} columns (such "
            f"as {short[0].name} with {short[0].inputs} inputs): GPTQModel's PyTorch kernel takes "
            "them, vLLM and GPTQModel's other kernels refuse them."
        )
    return found
