"""Write a quantized checkpoint again in another format, layer by layer, bit for bit the same."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quant.checkpoint.folder import MANIFEST, read_json, recover, remake, replace_folder
from quant.checkpoint.format import GPTQ_V1, GPTQ_V2, TERNARY, CheckpointFormat, describe
from quant.checkpoint.formats import compressed_tensors, gptq
from quant.checkpoint.layers import quantized_layers, read_weight, scales_name
from quant.checkpoint.loader import read_format, read_quantization
from quant.checkpoint.skeleton import build_skeleton
from quant.checkpoint.tensors import Entry, TensorReader, write_tensors
from quant.checkpoint.writer import (
    MAX_SHARD_BYTES,
    SLACK_BYTES,
    Pending,
    layer_shape,
    producer,
    tokenizer_files,
)
from quant.errors import ArtifactError
from quant.linear import packed_shapes
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

FORMATS = ("gptq-v1", "gptq-v2", "compressed-tensors")


@dataclass(frozen=True)
class Exported:
    """What was written, and what its readers make of it that a user must know."""

    folder: Path
    layers: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Layer:
    """One quantized layer of the source: what is known of it before its codes are read."""

    name: str
    scheme: Scheme
    outputs: int
    inputs: int
    read: Callable[[], QuantizedWeight]


def export(
    source: str | Path,
    target: str | Path,
    format: str,
    *,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    verify_files: bool = True,
) -> Exported:
    """Write the checkpoint in `source` to the folder `target` in one of FORMATS.

    source is any checkpoint that `load` reads, whoever made it. Codes and zero-points stay as they
    are; scales too, but in compressed-tensors they take the type of the model where that holds them
    exactly (its readers compute with scales of that type). All other tensors, the tokenizer and
    generation_config.json are copied. The folder appears whole or not at all, with the sha256 of
    every file in artifact.json; one layer at a time is in memory, and one shard. With overwrite it
    takes the place of a model that Bitsweep wrote there, once it is complete.

    Raises ArtifactError for a target that holds something, a source that cannot be read, and what
    the format cannot hold: ternary levels (no other format can), in version 1 zero-points of 0, in
    compressed-tensors columns that act-order scattered, groups that do not divide the inputs and
    Conv1D layers.
    """
    source, target = Path(source), Path(target)
    if format not in FORMATS:
        raise ArtifactError(f"format {format!r} is unknown; choose one of {', '.join(FORMATS)}.")
    if target.exists() and source.exists() and target.samefile(source):
        raise ArtifactError(f"{target} is the checkpoint itself; write the export elsewhere.")
    if not overwrite:
        _refuse_overwriting(target)
    checkpoint = read_format(source, verify_files=verify_files)
    if checkpoint.kind == TERNARY:
        raise ArtifactError(
            f"{source} has ternary levels (row minimum, 0, row maximum), which {format} cannot "
            "hold; they live in Bitsweep's own artifact alone. Quantize with a uniform scheme such "
            "as w2g64 to export."
        )
    with TensorReader(source) as reader:
        model = build_skeleton(source, None, {})
        layers = _layers(reader, checkpoint, model)
        entries = [entry for layer in layers for entry in _entries(layer, format, model.dtype)]
        replaced = tuple(f"{layer.name}." for layer in layers)
        entries += [_copied(reader, name) for name in reader.names if not name.startswith(replaced)]
        entries += [_copied(reader, name) for name in _biases(reader, layers, model)]
        config = _config(source, format, checkpoint, layers, model)
        files = [*tokenizer_files(source), *source.glob("generation_config.json")]
        needed = sum(entry.nbytes for entry in entries) + SLACK_BYTES
        needed += sum(path.stat().st_size for path in files)
        with replace_folder(target, needed) as partial:
            write_tensors(partial, entries, max_shard_bytes)
            (partial / "config.json").write_text(config, encoding="utf-8")
            for path in files:
                shutil.copyfile(path, partial / path.name)
    return Exported(target, len(layers), tuple(_notes(format, layers[0].scheme, model.dtype)))


def _refuse_overwriting(target: Path) -> None:
    """ArtifactError that says which model is at target; other things there are never replaced."""
    recover(target.absolute())  # a killed writer may have moved the model aside
    if not (target / MANIFEST).is_file():
        return
    try:
        found = read_format(target, verify_files=False)
        what = f"a quantized model ({found.name}, {found.bits} bits, by {found.producer})"
    except ArtifactError:
        what = f"an artifact of Bitsweep ({MANIFEST}) that cannot be read"
    raise ArtifactError(
        f"{target} holds {what} already, and it is not overwritten unasked: choose another folder, "
        "or add --overwrite (in Python overwrite=True) to replace it."
    )


def _layers(
    reader: TensorReader, checkpoint: CheckpointFormat, model: PreTrainedModel
) -> list[_Layer]:
    """The quantized layers with the shapes that the model gives them."""
    scales = scales_name(checkpoint)
    found = []
    for name, parts in quantized_layers(reader, checkpoint).items():
        try:
            outputs, inputs = layer_shape(model.get_submodule(name), name)
        except AttributeError as error:
            raise ArtifactError(
                f"{reader.folder} holds a quantized layer {name}, but {type(model).__name__} has "
                f"no such layer. {remake(reader.folder)}"
            ) from error
        read = functools.partial(read_weight, reader, checkpoint, name, parts, (outputs, inputs))
        if scales not in parts:
            read()  # says what is missing
        scheme = checkpoint.scheme(reader.mapped(f"{name}.{scales}").dtype)
        found.append(_Layer(name, scheme, outputs, inputs, read))
    return found


def _entries(layer: _Layer, format: str, model_dtype: torch.dtype) -> list[Entry]:
    """The tensors of one layer, made when they are written."""
    scales = getattr(torch, layer.scheme.scale_dtype)
    if format == "compressed-tensors":
        scales = _exact(scales, model_dtype)
        shapes = compressed_tensors.shapes(layer.scheme, layer.outputs, layer.inputs, layer.name)
        dtypes = {"weight_scale": scales, "weight_shape": torch.int64}

        def make() -> dict[str, Tensor]:
            return compressed_tensors.to_tensors(layer.read(), layer.name, scales)

    else:
        version = GPTQ_V1 if format == "gptq-v1" else GPTQ_V2
        shapes = packed_shapes(layer.scheme, layer.inputs, layer.outputs, g_idx=True)
        dtypes = {"scales": scales}

        def make() -> dict[str, Tensor]:
            return gptq.to_tensors(layer.read(), version, layer.name)

    pending = Pending(make)
    return [
        Entry(
            f"{layer.name}.{name}",
            shape,
            dtypes.get(name, torch.int32),
            functools.partial(pending.take, name),
        )
        for name, shape in shapes.items()
    ]


def _exact(scales: torch.dtype, model: torch.dtype) -> torch.dtype:
    """The type of the model when it holds every scale; otherwise that of the scales."""
    return model if torch.promote_types(scales, model) == model else scales


def _copied(reader: TensorReader, name: str) -> Entry:
    tensor = reader.mapped(name)
    return Entry(name, tuple(tensor.shape), tensor.dtype, functools.partial(reader.mapped, name))


def _biases(reader: TensorReader, layers: list[_Layer], model: PreTrainedModel) -> list[str]:
    """The biases of the quantized layers that the model has.

    AutoGPTQ gives every layer a bias, zeros where the model has none; a reader would ignore those.
    """
    names = []
    for name in (f"{layer.name}.bias" for layer in layers):
        if name not in reader.names:
            continue
        if getattr(model.get_submodule(name.removesuffix(".bias")), "bias", None) is not None:
            names.append(name)
        elif bool(reader.mapped(name).any()):
            raise ArtifactError(
                f"{reader.file_of(name)}: {name} is not zero, but {type(model).__name__} has no "
                f"bias there, so readers would ignore it. {remake(reader.folder)}"
            )
    return names


def _config(
    source: Path,
    format: str,
    checkpoint: CheckpointFormat,
    layers: list[_Layer],
    model: PreTrainedModel,
) -> str:
    """config.json of the source with another quantization_config."""
    config = read_json(source / "config.json")
    scheme = layers[0].scheme
    names = [layer.name for layer in layers]
    method = _method(read_quantization(source), checkpoint)
    if format == "compressed-tensors":
        described = compressed_tensors.describe(scheme, _ignored(model, names), method, producer())
    else:
        version = GPTQ_V1 if format == "gptq-v1" else GPTQ_V2
        described = describe(scheme, names, checkpoint.act_order, method, producer(), version)
    config["quantization_config"] = described
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _method(quantization: Mapping[str, Any], checkpoint: CheckpointFormat) -> dict[str, Any]:
    """What made the weights, as the source says it; for other producers their name."""
    meta = quantization.get("meta")
    said = meta.get("method") if isinstance(meta, Mapping) else None
    if isinstance(said, Mapping):
        return dict(said)
    return {"name": "unknown", "source": f"{checkpoint.name}, {checkpoint.producer or 'unnamed'}"}


def _ignored(model: PreTrainedModel, names: list[str]) -> list[str]:
    """nn.Linear that stay as they are. ArtifactError when a quantized layer is none."""
    quantized = set(names)
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise ArtifactError(
                f"{name} is a {type(module).__name__}, and compressed-tensors quantizes nn.Linear "
                "alone: export to gptq-v2."
            )
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in quantized
    ]


def _notes(format: str, scheme: Scheme, model_dtype: torch.dtype) -> list[str]:
    """What the readers of a format do with such a checkpoint; docs/checkpoints.md has the rest."""
    notes = []
    scales = getattr(torch, scheme.scale_dtype)
    if format != "compressed-tensors":
        if scales != torch.float16:
            notes.append(
                f"readers of GPTQ hold scales as float16 and will round these {_word(scales)} "
                "ones; scheme.scale_dtype=float16 makes scales that they keep."
            )
        return notes
    if _exact(scales, model_dtype) != model_dtype:
        notes.append(
            f"the model is {_word(model_dtype)}, so readers will round the {_word(scales)} scales "
            f"to it; scheme.scale_dtype={_word(model_dtype)} makes scales that they keep."
        )
    if not scheme.symmetric:
        notes.append(
            "transformers loads asymmetric grids of compressed-tensors only with "
            "quantization_config=CompressedTensorsConfig(dequantize=True)."
        )
    if scheme.bits not in (4, 8):
        notes.append(f"transformers reads {scheme.bits} bits; vLLM reads 4 and 8 alone.")
    return notes


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
