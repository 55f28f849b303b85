"""Find the quantized layers of a checkpoint in any format, and read them into one form."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from quant.budget import AnyScheme
from quant.checkpoint.choose import parse
from quant.checkpoint.files import weight_files
from quant.checkpoint.folder import remake
from quant.checkpoint.formats.base import CheckpointFormat
from quant.checkpoint.layer_names import is_expression
from quant.checkpoint.operators import tensor_names
from quant.checkpoint.tensors import TensorReader
from quant.errors import ArtifactError
from quant.head import is_embeddings, is_head
from quant.input_operator import NAME
from quant.levels.base import Levels
from quant.parts import Part
from quant.weight import AnyWeight

# Layers whose tensors are examined for properties that the configuration does not declare.
LOOKED_AT = 8
LISTED = 3  # names in an error; the rest are counted


class Tensors(Protocol):
    """Source of a layer's tensors: a TensorReader, or tensors that were already read from one."""

    folder: Path

    @property
    def names(self) -> Collection[str]: ...

    def file_of(self, name: str, /) -> Path: ...

    def nbytes(self, name: str, /) -> int: ...

    def read(self, name: str, /) -> Tensor: ...

    def mapped(self, name: str, /) -> Tensor: ...


def quantized_layers(reader: TensorReader, checkpoint: CheckpointFormat) -> dict[str, list[str]]:
    """Map each layer name to the tensors (qweight, scales, ...) that the files have of it."""
    codes = checkpoint.format.codes
    marks = [f".{part}" for part in checkpoint.format.marks or (codes,)]
    layers: dict[str, list[str]] = {
        name.removesuffix(mark): []
        for name in reader.names
        for mark in marks
        if name.endswith(mark)
    }
    if not layers:
        raise ArtifactError(
            f"{reader.folder} has no quantized layer (no tensor ends in {marks[0]}), although its "
            f"config.json has a quantization_config. {remake(reader.folder)}"
        )
    lacking = next((name for name in checkpoint.operators if name not in layers), None)
    if lacking is not None:
        raise ArtifactError(
            f"{reader.folder}: config.json has an operator in front of {lacking}, but the files "
            f"have no {marks[0][1:]} for it. {remake(reader.folder)}"
        )
    operators = operator_tensors(checkpoint)
    lacking = next((n for n in operators if n not in reader.names), None)
    if lacking is not None:
        raise missing_tensor(reader, lacking)
    _refuse_unnamed(reader, layers, operators)
    _refuse_contradictions(reader, checkpoint, layers)
    held = set(reader.names)
    for layer, parts in layers.items():
        parts += [part for part in checkpoint.of(layer).parts if f"{layer}.{part}" in held]
        if codes and codes not in parts:
            raise missing_tensor(reader, f"{layer}.{codes}")
    return layers


def _refuse_contradictions(
    reader: TensorReader, checkpoint: CheckpointFormat, layers: Collection[str]
) -> None:
    """Raise ArtifactError for a layer that config.json leaves in full precision and the files do
    not, and for one with settings of its own that the files do not have.
    """
    for layer in layers if checkpoint.own else ():
        if checkpoint.own_of(layer) is None:
            codes = f"{layer}.{checkpoint.format.codes}"
            raise ArtifactError(
                f"{reader.file_of(codes)} holds {codes}, and config.json says that the layer is in "
                f"full precision. {remake(reader.folder)}"
            )
    for name, fields in checkpoint.own.items():
        if fields and not is_expression(name) and name not in layers:
            raise ArtifactError(
                f"{reader.folder}: config.json has settings of its own for {name}, but the files "
                f"have no quantized layer of this name. {remake(reader.folder)}"
            )


def _mixture(checkpoint: CheckpointFormat, layers: Collection[str]) -> str:
    """Return the schemes of the layers in the blocks, in words; "" if there is one."""
    found: dict[str, int] = {}
    for layer in layers:
        if not is_head(layer) and not is_embeddings(layer):
            own = checkpoint.of(layer)
            name = own.scheme(own.scale_dtype).name
            found[name] = found.get(name, 0) + 1
    if len(found) < 2:
        return ""
    return ", ".join(f"{n} layer{'s' * (n > 1)} {name}" for name, n in found.items())


def _refuse_unnamed(
    reader: TensorReader, layers: Collection[str], operators: Collection[str]
) -> None:
    """Raise ArtifactError for tensors of operators that config.json does not name.

    The weights of their layers are those of a changed input, which is unknown without the operator.
    """
    mark = f".{NAME}."
    found = [n for n in reader.names if mark in n and n.partition(mark)[0] in layers]
    unnamed = sorted(set(found) - set(operators))
    if unnamed:
        more = f" and {len(unnamed) - LISTED} more" if len(unnamed) > LISTED else ""
        raise ArtifactError(
            f"{reader.file_of(unnamed[0])} holds {', '.join(unnamed[:LISTED])}{more}, which stand "
            f"in front of layers and which config.json does not name. {remake(reader.folder)}"
        )


def look_at(folder: Path, checkpoint: CheckpointFormat) -> CheckpointFormat:
    """Complete a format from layers spread over the checkpoint (see `settle`).

    Raises ArtifactError for files that the format cannot be read from, and for headers that
    contradict the configuration.
    """
    _refuse_pickle(folder, checkpoint)
    with TensorReader(folder) as reader:
        layers = quantized_layers(reader, checkpoint)
        if checkpoint.format.check_metadata is not None:
            checkpoint.format.check_metadata(checkpoint, layers, reader.metadata(), str(folder))
        alike = [name for name in layers if checkpoint.of(name) is checkpoint] or list(layers)
        names = alike[:: -(-len(alike) // LOOKED_AT)]
        parts = {n: {p: reader.mapped(f"{n}.{p}") for p in layers[n]} for n in names}
        mixture = _mixture(checkpoint, layers) if checkpoint.own else ""
        return replace(settle(checkpoint, parts, str(folder)), mixture=mixture)


def _refuse_pickle(folder: Path, checkpoint: CheckpointFormat) -> None:
    files = weight_files(folder)
    if files.pickled and checkpoint.format.pickled:
        raise ArtifactError(
            f"{folder / files.names[0]} is a pickle of {checkpoint.format.title}'s own classes, "
            f"and pickles are not read: {checkpoint.format.pickled}."
        )


def settle(
    checkpoint: CheckpointFormat, layers: Mapping[str, Mapping[str, Tensor]], where: str
) -> CheckpointFormat:
    """Complete a format with what its configuration does not declare, from some layers' tensors.

    That is the version of GPTQ, and whether scales are negative. Raises ArtifactError if the
    tensors fit several versions; `where` names the checkpoint.
    """
    if checkpoint.format.settle is not None:
        checkpoint = checkpoint.format.settle(checkpoint, layers, where)
    name = checkpoint.format.scales
    scales = [parts[name] for parts in layers.values() if name in parts] if name else []
    signed = any(bool((each < 0).any()) for each in scales)
    return replace(checkpoint, signed=signed)


def read_layer(
    tensors: Mapping[str, Tensor],
    quantization_config: Mapping[str, Any],
    *,
    shape: tuple[int, int] | None = None,
    layer: str = "this layer",
    levels: Sequence[str | Part | Levels] = (),
) -> AnyWeight:
    """Return the quantized weight of one layer of a checkpoint in any format.

    tensors maps the names of the layer's parts (qweight, scales, ...) to the tensors in the file.
    If shape (outputs, inputs) is None, it is derived from them. levels are kinds of levels that the
    layer may use besides the built-in ones. The values are scale * (code - zero) in float32, so
    `.dequantize(torch.bfloat16)` rounds once. An operator in front of the layer is not included:
    the weight is that of the changed input. Raises ArtifactError that names the layer, the tensor
    and the expected value.
    """
    parsed = settle(parse(quantization_config, layer, levels), {layer: tensors}, layer)
    return parsed.format.read_layer(tensors, parsed, layer, shape)


def read_weight(
    reader: Tensors,
    checkpoint: CheckpointFormat,
    layer: str,
    parts: list[str],
    shape: tuple[int, int] | None = None,
) -> AnyWeight:
    """Return the quantized weight of one layer.

    shape is (outputs, inputs) of the module that the layer replaces. Codes stay in the words of the
    file, which lie where `reader.mapped` has them, until they are asked for. Raises ArtifactError
    that names the file and the tensor that is missing, damaged or does not fit.
    """
    own = checkpoint.of(layer)
    first = own.format.first(parts)
    with _in_file(reader, f"{layer}.{first}"):
        tensors = {
            part: (reader.mapped if part == own.format.codes else reader.read)(f"{layer}.{part}")
            for part in parts
        }
        found = own.format.read_layer(tensors, own, layer, shape)
        if shape is not None and found.shape != shape:
            raise ArtifactError(
                f"{layer}.{first} holds {list(found.shape)} codes, but config.json makes it "
                f"{list(shape)} (outputs, inputs). {remake(reader.folder)}"
            )
        return found


def scheme_of(reader: TensorReader, checkpoint: CheckpointFormat, layer: str) -> AnyScheme:
    """Return the scheme of a layer; reads a file header if the dtype of its scales is needed."""
    if checkpoint.budget is not None:
        return checkpoint.budget
    checkpoint = checkpoint.of(layer)
    part = checkpoint.format.scales
    if part is None:
        return checkpoint.scheme(checkpoint.scale_dtype)
    if f"{layer}.{part}" not in reader.names:
        raise missing_tensor(reader, f"{layer}.{part}")
    return checkpoint.scheme(reader.mapped(f"{layer}.{part}").dtype)


def whole_scheme(
    reader: TensorReader, checkpoint: CheckpointFormat, layers: Collection[str]
) -> AnyScheme:
    """Return the scheme of the layers in the blocks, with those of head and embeddings if they are
    quantized.

    Of several schemes in the blocks it is the one of the layers without settings of their own.
    """
    heads = [layer for layer in layers if is_head(layer)]
    tables = [layer for layer in layers if is_embeddings(layer)]
    if not any(is_head(name.rpartition(".")[0]) for name in reader.names):
        heads = tables  # one matrix serves both
    inside = [layer for layer in layers if not is_head(layer) and not is_embeddings(layer)]
    usual = (layer for layer in inside if checkpoint.of(layer) is checkpoint)
    first = next(usual, inside[0] if inside else None)
    if first is None:
        return scheme_of(reader, checkpoint, (heads or tables)[0])
    outside = {
        what: scheme_of(reader, checkpoint, found[0])
        for what, found in (("head", heads), ("embeddings", tables))
        if found
    }
    return scheme_of(reader, checkpoint, first).beside(outside)  # type: ignore[arg-type]


def stored_bits(
    reader: Tensors,
    checkpoint: CheckpointFormat,
    layer: str,
    parts: Sequence[str],
    scheme: AnyScheme,
    shape: tuple[int, int],
) -> float:
    """Return the bits that the files hold of a layer's weight: as its scheme says, or all parts."""
    if checkpoint.format.counts_files:
        return 8.0 * sum(reader.nbytes(f"{layer}.{part}") for part in parts)
    return shape[0] * shape[1] * scheme.bits_per_weight(shape[1])


def operator_tensors(checkpoint: CheckpointFormat) -> list[str]:
    """Return the full names of the tensors of all operators."""
    operators = checkpoint.operators.items()
    return [f"{layer}.{part}" for layer, changes in operators for part in tensor_names(changes)]


def operator_bits(reader: TensorReader, checkpoint: CheckpointFormat) -> int:
    """Return the stored bits of all operators."""
    return sum(8 * reader.mapped(name).nbytes for name in operator_tensors(checkpoint))


def missing_tensor(reader: Tensors, name: str) -> ArtifactError:
    """Return the error for a tensor that is in none of the checkpoint's files."""
    return ArtifactError(
        f"{reader.folder}: tensor {name} is in none of its files. {remake(reader.folder)}"
    )


@contextlib.contextmanager
def _in_file(reader: Tensors, tensor: str) -> Iterator[None]:
    """Prefix messages that name a tensor of a layer with its file."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{reader.file_of(tensor)}: {error}") from error
