"""Models that are quantized already: a checkpoint of any format, whoever made it, as a cell.

Such a cell has method=none: its weights are measured as they are. Its scheme is what the files say,
and the record names format and producer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import CellConfig, ModelConfig
from harness.errors import ModelError
from harness.models.folders import QUANTIZATION_CONFIGS, model_folder

if TYPE_CHECKING:
    from quant.scheme import Scheme

METHOD = "loaded"  # what tables call the method of a checkpoint that was quantized elsewhere


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a quantized checkpoint is. zero_points says how sure their meaning is."""

    format: str
    producer: str
    zero_points: str
    scheme: Scheme

    def semantics(self) -> dict[str, str]:
        """The part of a record that names it."""
        return {
            "format": self.format,
            "producer": self.producer,
            "zero_points": self.zero_points,
            "twin": "its own weights, dequantized",
        }


def find_checkpoint(config: ModelConfig) -> Checkpoint | None:
    """The quantized checkpoint that a model is; None for full precision or one not here yet.

    ModelError for a quantization that cannot be read.
    """
    folder = model_folder(config)
    if folder is None:
        return None
    status = (folder / "config.json").stat()
    return _examine(folder, status.st_mtime_ns, status.st_size)


def describe_checkpoints(models: Iterable[ModelConfig]) -> list[str]:
    """One line for every model that is quantized already: where, what, by whom."""
    lines = {}
    for model in models:
        found = find_checkpoint(model)
        if found is not None:
            place = model.path or model.id or model.name
            lines[place] = (
                f"{place}: {found.format}, {found.scheme.name}, producer {found.producer}, "
                f"zero-points: {found.zero_points}"
            )
    return list(lines.values())


@lru_cache(maxsize=64)
def _examine(folder: Path, _mtime_ns: int, _size: int) -> Checkpoint | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = isinstance(config, dict) and config.get("quantization_config")
    if not said and not any((folder / name).is_file() for name in QUANTIZATION_CONFIGS):
        return None
    from quant import ArtifactError
    from quant.checkpoint import read_scheme

    try:
        checkpoint, scheme = read_scheme(folder)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    return Checkpoint(
        checkpoint.name, checkpoint.producer or "not named", checkpoint.zero_points, scheme
    )


def load_packed(config: CellConfig, folder: Path, kernel: str) -> Any:
    """The model of a quantized folder in the dtype and on the device of a cell."""
    import torch

    from quant import load

    return load(
        folder,
        kernel=kernel,
        device=config.runtime.device,
        dtype=getattr(torch, config.model.dtype),
        attn_implementation=config.model.attention,
    )


def load_checkpoint(config: CellConfig, kernel: str) -> Any:
    """The model of a quantized checkpoint, its layers on `kernel`."""
    folder = model_folder(config.model)
    assert folder is not None
    return load_packed(config, folder, kernel)


def load_dequantized(config: CellConfig) -> Any:
    """The same model with its weights dequantized: the twin where no original is at hand."""
    import torch

    from quant.checkpoint import dequantize_layers

    model = load_checkpoint(config, config.runtime.kernel)
    dequantize_layers(model, getattr(torch, config.model.dtype))
    return model


def packed_shapes(model: Any) -> list[tuple[int, int]]:
    """(outputs, inputs) of every packed layer of a model."""
    from quant import QuantLinear

    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    return [(layer.out_features, layer.in_features) for layer in layers]


def bits_per_weight(scheme: Scheme, shapes: Iterable[tuple[int, int]]) -> float:
    """Stored bits per quantized weight of layers [outputs, inputs], scales and zeros included."""
    weights = stored = 0.0
    for outputs, inputs in shapes:
        weights += outputs * inputs
        stored += outputs * inputs * scheme.bits_per_weight(inputs)
    return stored / weights
