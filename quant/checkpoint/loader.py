"""Load a quantized checkpoint as a model whose quantized layers are QuantLinear modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from cuda_ext.ops import resolve_kernel
from quant.budget import AnyScheme
from quant.checkpoint.choose import config_files, parse
from quant.checkpoint.folder import MANIFEST, read_json, remake, verify
from quant.checkpoint.foreign import refuse_foreign
from quant.checkpoint.formats.base import CheckpointFormat
from quant.checkpoint.layers import (
    Tensors,
    look_at,
    missing_tensor,
    operator_tensors,
    quantized_layers,
    read_weight,
    stored_bits,
    whole_scheme,
)
from quant.checkpoint.matching import (
    compare,
    keep_computed,
    parameters_and_buffers,
    tensor_of,
    untie_as_stored,
)
from quant.checkpoint.names import names_of
from quant.checkpoint.operators import build, find_transforms
from quant.checkpoint.skeleton import build_skeleton
from quant.checkpoint.tensors import TensorReader
from quant.checkpoint.writer import layer_shape
from quant.embedding import QuantEmbedding, embed_scale, looked_up
from quant.errors import ArtifactError
from quant.factored import FactoredLinear, PackedLinear
from quant.head import tied, with_served_head
from quant.input_operator import attach
from quant.levels.base import Levels
from quant.linear import QuantLinear, pack
from quant.memory.heaps import own_copy
from quant.parts import Part
from quant.spread.connect import connect, move_computed
from quant.spread.place import Over
from quant.spread.split import Spread
from quant.transforms.base import Transform
from quant.weight import AnyWeight, FactoredWeight


def load(
    folder: str | Path,
    kernel: str = "auto",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    verify_files: bool = True,
    transforms: Sequence[Transform] = (),
    levels: Sequence[str | Part | Levels] = (),
    over: Over | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Return the model of a quantized checkpoint in any supported format, in eval mode.

    Quantized layers become QuantLinear modules that run `kernel`, or FactoredLinear modules, which
    have none; all other tensors are cast to dtype (None: their stored dtype). No weight is
    initialised before it is loaded. verify_files compares every file with its sha256 in
    artifact.json (checkpoints of other producers have none).
    transforms are the specs of external transforms whose operators the checkpoint has; levels are
    kinds of levels that it may use besides the built-in ones. Modules are imported because you name
    them here, never because a file does. over: several devices for its blocks, in place of
    `device`. options are passed to transformers, for example attn_implementation="eager".

    Raises ArtifactError, naming the file and the tensor, for a folder that is missing, incomplete,
    damaged, in an unknown format or does not fit its config.json; KernelUnavailable if the kernel
    cannot run; NotEnoughMemory if the model does not fit on several devices.
    """
    folder = Path(folder)
    device = device if over is None else over.home
    resolve_kernel(kernel, device)
    found = read_format(folder, verify_files=verify_files, levels=levels)
    checkpoint = runnable(found, transforms, folder)
    with TensorReader(folder) as reader:
        model = build_skeleton(folder, dtype, options)
        reader.rename(names_of(model).to_model)
        layers = quantized_layers(reader, checkpoint)
        require_tensors(model, reader, checkpoint, layers)
        spread = None if over is None else _spread(model, reader, layers, over)
        place = spread.of if spread is not None else lambda _: device
        for layer, names in layers.items():
            replace_layer(model, reader, checkpoint, layer, names, kernel, place(layer), dtype)
        _fill(model, reader, place, dtype)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    result: PreTrainedModel = model.eval()
    if spread is None:
        result = result.to(device)  # type: ignore[arg-type]
    else:
        move_computed(result, spread)
        connect(result, spread)
    return result


def _spread(
    model: PreTrainedModel, reader: TensorReader, layers: Mapping[str, Sequence[str]], over: Over
) -> Spread:
    """Where the parts of the model are to lie, by the sizes of its layers in the files."""
    untie_as_stored(model, set(reader.names), reader.mapped)
    sizes = {
        layer: sum(reader.nbytes(f"{layer}.{part}") for part in parts)
        for layer, parts in layers.items()
    }
    return over.spread(model, sizes)


def load_weights(
    folder: str | Path,
    *,
    verify_files: bool = True,
    levels: Sequence[str | Part | Levels] = (),
) -> dict[str, AnyWeight]:
    """Return the quantized weights of a checkpoint by full layer name, without building the model.

    The weight of a layer with an operator is the one that multiplies the operator's output.
    """
    folder = Path(folder)
    checkpoint = read_format(folder, verify_files=verify_files, levels=levels)
    # Not mapped: codes stay in words, which would stay in the file.
    with TensorReader(folder, mapped=False) as reader:
        return {
            layer: read_weight(reader, checkpoint, layer, parts)
            for layer, parts in quantized_layers(reader, checkpoint).items()
        }


def runnable(
    checkpoint: CheckpointFormat, transforms: Sequence[Transform], folder: Path
) -> CheckpointFormat:
    """Add the transforms to the format's operators; ArtifactError for an unknown transform."""
    operators = find_transforms(checkpoint.operators, transforms, str(folder))
    return dataclasses.replace(checkpoint, operators=operators)


def read_format(
    folder: Path, *, verify_files: bool = True, levels: Sequence[str | Part | Levels] = ()
) -> CheckpointFormat:
    """Read the format of a checkpoint from its configuration, after checking its files."""
    refuse_foreign(folder)
    if not folder.is_dir():
        aside = sorted(folder.parent.glob(f".{folder.name}.replaced-*"))
        hint = f" A killed writer left it at {aside[0]}: move it back." if aside else ""
        raise ArtifactError(
            f"{folder} is not a folder; quantize a model into it, or correct the path.{hint}"
        )
    checkpoint = parse(read_quantization(folder), str(folder), levels)
    sealed = verify_files and verify(folder)
    own = checkpoint.producer.startswith("bitsweep")
    if verify_files and not sealed and own:
        raise ArtifactError(
            f"{folder / MANIFEST} is missing, so the files cannot be checked. {remake(folder)}"
        )
    # Of ours the configuration says all, except which layers have settings of their own.
    return checkpoint if own and not checkpoint.own else look_at(folder, checkpoint)


def read_quantization(folder: Path) -> dict[str, Any]:
    """Read the quantization_config of config.json, or the separate file that early formats have."""
    quantization = read_json(folder / "config.json").get("quantization_config")
    if isinstance(quantization, dict):
        return quantization
    if quantization:
        raise ArtifactError(
            f"{folder / 'config.json'}: quantization_config={str(quantization)[:40]!r} is no "
            "object, so nobody knows how the weights were quantized: use the config.json of the "
            "original checkpoint."
        )
    files = config_files()
    found = [name for name in files if (folder / name).is_file()]
    if len(found) > 1:
        raise ArtifactError(
            f"{folder} contains {' and '.join(found)}, which declare different formats: remove the "
            "wrong one."
        )
    if found:
        return {"quant_method": files[found[0]], **read_json(folder / found[0])}
    raise ArtifactError(
        f"{folder / 'config.json'} has no quantization_config: the model is not quantized. "
        "Load it with transformers, or pass the folder of a quantized one."
    )


def read_scheme(
    folder: str | Path, levels: Sequence[str | Part | Levels] = ()
) -> tuple[CheckpointFormat, AnyScheme]:
    """Read format and scheme from config.json and file headers, without checking checksums.

    The scheme has that of the head, if the head is quantized.
    """
    folder = Path(folder)
    checkpoint = read_format(folder, verify_files=False, levels=levels)
    with TensorReader(folder) as reader:
        layers = quantized_layers(reader, checkpoint)
        return checkpoint, whole_scheme(reader, checkpoint, layers)


def dequantize_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every packed layer of a model by an nn.Linear with the dequantized weight.

    Embeddings stay packed: they multiply nothing.
    """
    tables = looked_up(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, PackedLinear) or module in tables:
            continue
        with torch.device("meta"):
            dense = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        dense.weight = nn.Parameter(module.dequantize(dtype), requires_grad=False)
        if module.bias is not None:
            dense.bias = nn.Parameter(module.bias, requires_grad=False)
        if module.input_operator is not None:
            attach(dense, module.input_operator)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, dense)


def replace_layer(
    model: PreTrainedModel,
    reader: Tensors,
    checkpoint: CheckpointFormat,
    layer: str,
    parts: list[str],
    kernel: str,
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> None:
    """Replace one layer by a QuantLinear, by a FactoredLinear if it is factored, or embeddings by a
    QuantEmbedding; a head that is tied to these becomes their matrix.
    """
    module = model.get_submodule(layer)
    outputs, inputs = layer_shape(module, layer)
    shape = (outputs, inputs)
    found = read_weight(reader, checkpoint, layer, parts, shape)
    bias, of_bias = None, f"{with_served_head(model, [layer])[-1]}.bias"
    # AutoGPTQ stores a bias for every layer, even if the model has none; a stored bias is used.
    if of_bias in reader.names:
        bias = _cast(reader.read(of_bias), device, dtype)
        if tuple(bias.shape) != (outputs,):
            raise _shape_error(reader, of_bias, (outputs,), tuple(bias.shape))
        require_kind(reader, of_bias, bias, torch.float32)
    kept, operator = checkpoint.operators.get(layer, ()), None
    if kept:
        operator = build(kept, reader.read, inputs, layer)
    quantized: PackedLinear
    if isinstance(found, FactoredWeight):
        quantized = FactoredLinear(found, bias, operator).to(device)
    else:
        scheme, packed = found.scheme, pack(found)
        if found.words is not None:
            packed["qweight"] = _out_of_file(packed["qweight"], device)
        del found  # its codes, where they were unpacked: a byte each
        # The device's kernel converts the buffers to its layout, so move them there first.
        packed = {name: part.to(device) for name, part in packed.items()}
        quantized = QuantLinear(packed, scheme, inputs, bias, kernel, operator).to(device)
        quantized.stored_bits = stored_bits(reader, checkpoint, layer, parts, scheme, shape)
    parent, _, child = layer.rpartition(".")
    if not isinstance(module, nn.Embedding):
        setattr(model.get_submodule(parent), child, quantized)
        return
    assert isinstance(quantized, QuantLinear)  # no form of embeddings is factored
    own, shared = module.weight.dtype if dtype is None else dtype, tied(model)
    if shared:
        model.set_output_embeddings(quantized)
    table = QuantEmbedding(quantized, own, embed_scale(module), shared=shared).to(device)
    setattr(model.get_submodule(parent), child, table)


def _fill(
    model: PreTrainedModel,
    reader: TensorReader,
    place: Callable[[str], str | torch.device],
    dtype: torch.dtype | None,
) -> None:
    """Read all remaining parameters and stored buffers, each to its place by name."""
    stored = set(reader.names)
    untie_as_stored(model, stored, reader.mapped)
    keep_computed(model, stored)
    for names in parameters_and_buffers(model):
        held = [name for name in names if name in stored]
        tensor = _cast(reader.read(held[0]), place(names[0]), dtype)
        expected = tensor_of(model, names[0])
        require_kind(reader, held[0], tensor, expected.dtype)
        parameter = isinstance(expected, nn.Parameter)
        value = nn.Parameter(tensor, requires_grad=False) if parameter else tensor
        for name in names:
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, value)


def require_whole(
    folder: Path, skeleton: PreTrainedModel, levels: Sequence[str | Part | Levels] = ()
) -> None:
    """Open a checkpoint and call `require_tensors`, with the errors of `load`."""
    checkpoint = read_format(folder, verify_files=False, levels=levels)
    with TensorReader(folder) as reader:
        reader.rename(names_of(skeleton).to_model)
        require_tensors(skeleton, reader, checkpoint, quantized_layers(reader, checkpoint))


def require_tensors(
    model: PreTrainedModel,
    reader: TensorReader,
    checkpoint: CheckpointFormat,
    layers: Mapping[str, Sequence[str]],
) -> None:
    """Raise ArtifactError for tensors that are missing, unexpected or of another shape.

    Only headers are read. `layers` has the parts of each layer; their contents and shapes are
    checked when they are read.
    """
    stored, kind = set(reader.names), type(model).__name__
    for layer in layers:
        try:
            model.get_submodule(layer)
        except AttributeError as error:
            codes = f"{layer}.{checkpoint.format.first(layers[layer])}"
            raise ArtifactError(
                f"{reader.file_of(codes)} holds {codes}, but {kind} has no such layer. "
                f"{remake(reader.folder)}"
            ) from error
    packed = {f"{layer}.weight" for layer in layers}
    missing = compare(model, stored | packed, (), reader.shape).missing
    if missing:
        raise missing_tensor(reader, missing[0])
    used = {f"{layer}.{part}" for layer, parts in layers.items() for part in (*parts, "bias")}
    used |= set(operator_tensors(checkpoint))
    for names in parameters_and_buffers(model):
        for name in (name for name in names if name in stored - packed):
            used.add(name)
            expected = tuple(tensor_of(model, name).shape)
            if (found := reader.shape(name)) != expected:
                raise _shape_error(reader, name, expected, found)
    refuse_unexpected(model, reader, used)


def refuse_unexpected(model: PreTrainedModel, reader: TensorReader, used: set[str]) -> None:
    """Raise ArtifactError for stored tensors that do not belong to the model."""
    left = sorted(set(reader.names) - used)
    for name in compare(model, reader.names, left, reader.shape).unexpected:
        raise ArtifactError(
            f"{reader.file_of(name)} holds {name}, which {type(model).__name__} does not have: "
            f"config.json belongs to another model. {remake(reader.folder)}"
        )


def _cast(tensor: Tensor, device: str | torch.device, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


def _out_of_file(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Return a tensor that may lie in a mapped file in memory of its own, or on another device."""
    return own_copy(tensor) if torch.device(device).type == "cpu" else tensor.to(device)


def require_kind(reader: Tensors, name: str, tensor: Tensor, expected: torch.dtype) -> None:
    """Raise ArtifactError for integers where the model has floating point, or the reverse."""
    if tensor.is_floating_point() != expected.is_floating_point:
        raise ArtifactError(
            f"{reader.file_of(name)}: {name} is {tensor.dtype}, but the model has {expected} "
            f"there. {remake(reader.folder)}"
        )


def _shape_error(
    reader: Tensors,
    name: str,
    expected: tuple[int, ...],
    found: tuple[int, ...],
) -> ArtifactError:
    return ArtifactError(
        f"{reader.file_of(name)}: {name} is {list(found)}, but config.json makes it "
        f"{list(expected)}. {remake(reader.folder)}"
    )
