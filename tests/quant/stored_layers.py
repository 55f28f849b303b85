"""One layer written in a format by its name, and read again, without a folder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quant.checkpoint.choose import written_format
from quant.checkpoint.formats.base import QuantizedModel, StoredLayer
from quant.errors import ArtifactError
from quant.weight import QuantizedWeight


def stored_layer(weight: QuantizedWeight) -> StoredLayer:
    """The layer "proj" of a weight."""
    return StoredLayer("proj", *weight.shape, scattered=weight.group_index is not None)


def write(format: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """Its tensors; ArtifactError for what the format refuses."""
    _, writer = written_format(format)
    layer = stored_layer(weight)
    reason = writer.refuses(weight.scheme, layer)
    if reason is not None:
        raise ArtifactError(f"proj {reason}")
    return writer.write_layer(weight, layer)


def described(format: str, weight: QuantizedWeight) -> dict[str, Any]:
    """The quantization_config of a model of that one layer."""
    scattered = weight.group_index is not None
    model = QuantizedModel(weight.scheme, ("proj",), ("lm_head",), scattered, {}, "test")
    return written_format(format)[1].describe(model)
