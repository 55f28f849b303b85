"""The compressed-tensors format "pack-quantized" (vLLM's LLM Compressor), read and written.

A layer [out, in] is stored as

    weight_packed      int32 [out, ceil(in * bits / 32)]: the codes of a row as one little-endian
                       stream of bits, so that 3-bit codes straddle words. Releases before 0.18
                       put 32 // bits whole codes in a word (quant.checkpoint.compressed_packing),
                       which is read too.
    weight_scale       [out, groups]
    weight_zero_point  int32 [ceil(out * bits / 32), groups], packed along the outputs; asymmetric
                       only. Early versions of the library stored it as int8 [out, groups].
    weight_shape       int64 [2]: out, in
    weight_g_idx       int32 [in]: the group of every column; only in files of early versions

The library's codes and zero-points are signed (-2^(bits-1) .. 2^(bits-1) - 1) and stored plus
2^(bits-1), which gives the numbers of QuantizedWeight. Values are scale * (code - zero).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from quant.checkpoint import compressed_packing as packing
from quant.checkpoint.compressed_settings import (
    INTEGERS,
    METHOD,
    Group,
    is_of_integers,
    read_mixed_groups,
)
from quant.checkpoint.formats.base import (
    CheckpointFormat,
    Config,
    Format,
    QuantizedModel,
    StoredLayer,
    Writer,
    dtype_name,
    read_bits,
    read_flag,
    read_group_size,
    refuse_levels,
    validated,
)
from quant.checkpoint.meta import read_head_grid, read_meta, read_own_grid
from quant.errors import ArtifactError
from quant.fused import split_note
from quant.scheme import Scheme

if TYPE_CHECKING:
    import torch

    from quant.checkpoint.formats.base import Entries, Read, Shape, Tensors
    from quant.linear import Packed
    from quant.weight import QuantizedWeight

# The release whose packing and configuration are written; the tests read them with it.
LIBRARY_VERSION = "0.20.0"
# What vLLM's scheme WNA16 takes by its source: these widths with any grid and kernel, symmetric
# ones of others since 2026, by the package humming. It counts ceil(inputs * bits / 32) words a row,
# as they are written here.
_VLLM_BITS = (4, 8)


def parse(config: Config, where: str) -> CheckpointFormat:
    found, of_head, of_layers = read_mixed_groups(config, where)
    grid, producer = read_meta(config)
    version = config.get("version")
    producer = producer or (f"{METHOD} {version}" if version else "")
    parsed = _parse_group(found, grid, producer)
    fields = ("bits", "group_size", "symmetric", "act_order", "grid")
    if of_head is not None:
        head = _parse_group(of_head, read_head_grid(config), producer)
        parsed = replace(parsed, head={each: getattr(head, each) for each in fields})
    own = {}
    for name, group in of_layers.items():
        layer = _parse_group(group, read_own_grid(config, name), producer)
        own[name] = {each: getattr(layer, each) for each in fields}
    parsed = replace(parsed, own=own)
    return validated(_counting(parsed, packing.packing_of_release(version)), where)


def _parse_group(group: Group, grid: str, producer: str) -> CheckpointFormat:
    weights, where = group.weights, group.where
    if group.inputs:
        raise ArtifactError(
            f"{where.removesuffix('weights')}input_activations quantizes activations; only weights "
            "may be quantized."
        )
    if weights.get("type", "int") != "int" or weights.get("dynamic") not in (None, False):
        raise ArtifactError(
            f"{where} has type={weights.get('type')!r} and dynamic={weights.get('dynamic')!r}; "
            "only integers with stored scales can be read."
        )
    size = read_group_size({"group_size": weights.get("group_size") or -1}, where)
    strategy = weights.get("strategy") or ("channel" if size is None else "group")
    if strategy not in ("channel", "group") or (strategy == "group") != (size is not None):
        raise ArtifactError(
            f"{where} has strategy={strategy!r} and group_size={weights.get('group_size')!r}; only "
            "'group' with a size and 'channel' without one can be read."
        )
    return CheckpointFormat(
        format=FORMAT,
        bits=read_bits(weights, where, "num_bits"),
        group_size=size,
        symmetric=read_flag(weights, "symmetric", where, default=True),
        # "weight" and "static" only describe the solver's order; "group" moves columns.
        act_order=weights.get("actorder") in (True, "group", "dynamic"),
        grid=grid,
        producer=producer,
    )


def settle(parsed: CheckpointFormat, layers: Mapping[str, Tensors], where: str) -> CheckpointFormat:  # noqa: ARG001
    """Take the packing from the layers, if all that show one show the same."""
    from quant.checkpoint.compressed_layers import shown_packing

    shown = {shown_packing(parts, parsed) for parts in layers.values()} - {""}
    return _counting(parsed, shown.pop() if len(shown) == 1 else parsed.packing)


def _counting(parsed: CheckpointFormat, packed: str) -> CheckpointFormat:
    """Return a checkpoint of this packing: the bits of a scheme are those of a stream."""
    own = [fields["bits"] for fields in parsed.own.values() if fields]
    widths = (parsed.bits, parsed.head.get("bits", parsed.bits), *own)
    whole = [bits for bits in widths if not packing.same_in_both(bits)]
    if packed != packing.WHOLE or not whole:
        return replace(parsed, packing=packed, format=FORMAT, evidence="")
    said = packing.describe(whole[0])
    return replace(parsed, packing=packed, format=_WHOLE_CODES, evidence=said)


def zero_points(parsed: CheckpointFormat) -> str:
    return "none: symmetric" if parsed.symmetric else "stored as they are"


def read_layer(tensors: Tensors, parsed: CheckpointFormat, layer: str, _: Shape) -> Read:
    from quant.checkpoint.compressed_layers import read

    return read(tensors, parsed, layer)


def refuses(scheme: Scheme, layer: StoredLayer | None) -> str | None:
    reason = refuse_levels(scheme, FORMAT.name)
    if layer is None or reason is not None:
        return reason
    if layer.module != "Linear":
        return f"is a {layer.module}, and {FORMAT.name} supports only nn.Linear: export to gptq-v2."
    if scheme.short_group(layer.inputs):
        return (
            f"cannot be stored: groups of {scheme.group_size} do not divide its {layer.inputs} "
            f"inputs, which {FORMAT.name} requires; export to gptq-v2."
        )
    if layer.scattered:
        return (
            f"has groups whose columns act-order has scattered, and {FORMAT.name} requires "
            "adjacent columns: export to gptq-v2, or quantize with method.static_groups=true."
        )
    return None


def entries(scheme: Scheme, layer: StoredLayer) -> Entries:
    import torch

    from cuda_ext.layout import words_for

    groups = scheme.groups(layer.inputs)
    found: Entries = {
        "weight_packed": ((layer.outputs, words_for(layer.inputs, scheme.bits)), torch.int32),
        "weight_scale": ((layer.outputs, groups), _scale_dtype(scheme, layer)),
        "weight_shape": ((2,), torch.int64),
    }
    if not scheme.symmetric:
        shape = (words_for(layer.outputs, scheme.bits), groups)
        found["weight_zero_point"] = (shape, torch.int32)
    return found


def write_layer(weight: QuantizedWeight, layer: StoredLayer) -> Packed:
    import torch

    from cuda_ext.codes import pack_columns, pack_rows

    assert weight.zero is not None
    scheme = weight.scheme
    tensors = {
        "weight_packed": pack_rows(weight.codes, scheme.bits),
        "weight_scale": weight.scale.to(_scale_dtype(scheme, layer)).contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }
    if not scheme.symmetric:
        tensors["weight_zero_point"] = pack_columns(weight.zero.t(), scheme.bits)
    return tensors


def _scale_dtype(scheme: Scheme, layer: StoredLayer) -> torch.dtype:
    """Return the dtype of the model if it represents every scale exactly, else scale_dtype.

    Readers compute with scales in the dtype of the model.
    """
    import torch

    scales = getattr(torch, scheme.scale_dtype)
    model = layer.dtype or scales
    return model if torch.promote_types(scales, model) == model else scales


def describe(model: QuantizedModel) -> dict[str, Any]:
    """Return the quantization_config of a model, which lists the nn.Linear not quantized."""
    named: dict[Scheme, list[str]] = {}
    for name, scheme in model.own.items():
        named.setdefault(scheme, []).append(name)
    # vLLM prefers a class to the names of what it fuses: beside a class it would not find q, k, v.
    usual = [name for name in model.layers if name not in model.own] if named else ["Linear"]
    found = [_group(usual, model.scheme), *(_group(n, each) for each, n in named.items())]
    if model.own_head is not None:
        found.append(_group([model.own_head[0]], model.own_head[1]))
    groups = {f"group_{number}": each for number, each in enumerate(found)}
    # A setting of transformers, whose other way of loading stops at packed zero-points. It decodes
    # all layers with the settings of one group, so several must not be loaded that way.
    dequantize = len(groups) == 1 and not model.scheme.symmetric
    return {
        "quant_method": METHOD,
        **({"dequantize": True} if dequantize else {}),
        "version": LIBRARY_VERSION,
        "format": INTEGERS,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(model.linears),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "meta": model.meta(),
    }


def _group(targets: list[str], scheme: Scheme) -> dict[str, Any]:
    """Return the settings of the layers with these names or classes."""
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": INTEGERS,
    }


def notes(scheme: Scheme, layers: Sequence[StoredLayer]) -> list[str]:
    found = []
    model = layers[0].dtype
    if model is not None and _scale_dtype(scheme, layers[0]) != model:
        found.append(
            f"the model is {dtype_name(model)}, so readers will round the {scheme.scale_dtype} "
            f"scales to it; scheme.scale_dtype={dtype_name(model)} makes scales that they keep."
        )
    every = set(_every(scheme))
    if not all(each.symmetric for each in every):
        other = "a head" if len(scheme.every) == 1 else "layers"
        found.append(
            "transformers dequantizes asymmetric grids when it loads them (dequantize in "
            "quantization_config), because it does not read packed zero-points; vLLM keeps them."
            if len(every) == 1
            else f"transformers does not load asymmetric grids beside {other} with settings of its "
            "own (with dequantize=True it decodes one with the settings of the other): quantize "
            "both with symmetric=true, or export to gptq-v2 for GPTQModel."
        )
    if len(scheme.every) > 1:
        split = split_note((each.name for each in layers), lambda name: scheme.of(name).name)
        found.append(
            split
            or "vLLM reads layers of several schemes (config_groups), because those that it fuses "
            "(q, k and v; gate and up) have the same here."
        )
    if scheme.head is not None:
        found.append(
            "vLLM reads the quantized head only in releases with its pull request 37291 (March "
            "2026)."
        )
    return [*found, *_notes_on_widths(scheme)]


def _notes_on_widths(scheme: Scheme) -> list[str]:
    """What vLLM says to the widths of layers and head; transformers reads all."""
    odd = [each for each in _every(scheme) if each.bits not in _VLLM_BITS]
    symmetric, others = (
        sorted({each.bits for each in odd if each.symmetric is kind}) for kind in (True, False)
    )
    found = []
    if symmetric:
        found.append(
            f"vLLM reads {_and(symmetric)} bits, symmetric as they are, in releases with its pull "
            "request 46389 (summer of 2026), on CUDA with the package humming; transformers reads "
            "them anywhere."
        )
    if others:
        found.append(
            f"transformers reads {_and(others)} bits; vLLM reads asymmetric grids only of 4 and 8 "
            "bits, and symmetric ones of 2 to 8: quantize with scheme.symmetric=true for it."
        )
    return found


def _every(scheme: Scheme) -> list[Scheme]:
    """Return the schemes of layers, and of the head if it is quantized."""
    return [*scheme.every, *([] if scheme.head is None else [scheme.head])]


def _and(bits: Sequence[int]) -> str:
    return " and ".join(map(str, bits))


FORMAT = Format(
    name="compressed-tensors",
    title="compressed-tensors",
    quant_method=METHOD,
    variant=f"format {INTEGERS}",
    readers="vLLM, transformers with compressed-tensors",
    parts=("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    codes="weight_packed",
    scales="weight_scale",
    matches=is_of_integers,
    parse=parse,
    zero_points=zero_points,
    read_layer=read_layer,
    settle=settle,
    writer=Writer(
        refuses=refuses,
        entries=entries,
        write_layer=write_layer,
        describe=describe,
        notes=notes,
        mixes=True,
    ),
)
_WHOLE_CODES = replace(FORMAT, counts_files=True)
