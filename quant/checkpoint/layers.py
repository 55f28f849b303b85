"""The quantized layers of a checkpoint of any format: found by name, read into one form."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from torch import Tensor

from quant.checkpoint.folder import remake
from quant.checkpoint.format import AWQ, COMPRESSED_TENSORS, CheckpointFormat
from quant.checkpoint.formats import awq, compressed_tensors
from quant.checkpoint.formats.gptq import canonical, input_features
from quant.checkpoint.tensors import TensorReader
from quant.errors import ArtifactError
from quant.linear import Packed, pack, unpack
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

_GPTQ_PARTS = ("qweight", "qzeros", "scales", "scales_negative", "g_idx")


class Tensors(Protocol):
    """Where a layer's tensors come from: a TensorReader, or what was read from one."""

    folder: Path

    @property
    def names(self) -> Collection[str]: ...

    def file_of(self, name: str, /) -> Path: ...

    def read(self, name: str, /) -> Tensor: ...


def codes_name(checkpoint: CheckpointFormat) -> str:
    """The part that every quantized layer has: its packed codes."""
    return "weight_packed" if checkpoint.kind == COMPRESSED_TENSORS else "qweight"


def scales_name(checkpoint: CheckpointFormat) -> str:
    """The part that holds the scales."""
    return "weight_scale" if checkpoint.kind == COMPRESSED_TENSORS else "scales"


def quantized_layers(reader: TensorReader, checkpoint: CheckpointFormat) -> dict[str, list[str]]:
    """Layer name to the parts (qweight, scales, ...) that the files hold of it."""
    suffix = "." + codes_name(checkpoint)
    layers: dict[str, list[str]] = {
        name.removesuffix(suffix): [] for name in reader.names if name.endswith(suffix)
    }
    if not layers:
        raise ArtifactError(
            f"{reader.folder} holds no quantized layer (no tensor ends in {suffix}), although its "
            f"config.json has a quantization_config. {remake(reader.folder)}"
        )
    parts = compressed_tensors.PARTS if suffix == ".weight_packed" else _GPTQ_PARTS
    for name in reader.names:
        layer, _, part = name.rpartition(".")
        if layer in layers and part in parts:
            layers[layer].append(part)
    return layers


def read_packed(
    reader: Tensors,
    checkpoint: CheckpointFormat,
    layer: str,
    parts: list[str],
    shape: tuple[int, int] | None = None,
) -> tuple[Packed, Scheme, int]:
    """The buffers of QuantLinear, the scheme and the inputs of one layer.

    shape is (outputs, inputs) of the module that the layer takes the place of. Raises ArtifactError
    naming the file and the tensor that is missing, damaged or does not fit.
    """
    with _in_file(reader, checkpoint, layer):
        tensors = {part: reader.read(f"{layer}.{part}") for part in parts}
        if checkpoint.kind in (AWQ, COMPRESSED_TENSORS):
            read = awq if checkpoint.kind == AWQ else compressed_tensors
            weight = read.from_tensors(tensors, checkpoint, layer)
            if shape is not None and weight.shape != shape:
                raise ArtifactError(
                    f"{layer}.{codes_name(checkpoint)} holds {list(weight.shape)} codes, but "
                    f"config.json makes it {list(shape)} (outputs, inputs). {remake(reader.folder)}"
                )
            return pack(weight), weight.scheme, weight.shape[1]
        outputs, inputs = shape or (None, input_features(tensors, checkpoint, layer))
        packed, scheme = canonical(tensors, checkpoint, inputs, layer, outputs)
        return packed, scheme, inputs


def read_weight(
    reader: TensorReader,
    checkpoint: CheckpointFormat,
    layer: str,
    parts: list[str],
    shape: tuple[int, int] | None = None,
) -> QuantizedWeight:
    """As read_packed, unpacked."""
    return unpack(*read_packed(reader, checkpoint, layer, parts, shape))


@contextlib.contextmanager
def _in_file(reader: Tensors, checkpoint: CheckpointFormat, layer: str) -> Iterator[None]:
    """Put the file before a message that names a tensor of the layer."""
    try:
        yield
    except ArtifactError as error:
        file = reader.file_of(f"{layer}.{codes_name(checkpoint)}")
        raise ArtifactError(f"{file}: {error}") from error
