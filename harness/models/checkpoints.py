"""Models that are quantized already: what a checkpoint of any format says of itself, and loading.

Such a cell has method=none: its weights are measured as they are. Its scheme is what the files say,
and the record names format and producer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError
from harness.models.folders import chosen_weights
from quant.checkpoint.files import QUANTIZATION_FILES
from quant.parts import Part

if TYPE_CHECKING:
    from quant.scheme import Scheme
    from quant.transforms.base import Transform


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a quantized checkpoint is. zero_points says how sure their meaning is.

    evidence  what shows it, where the files do not say.
    signed    it holds negative scales.
    """

    format: str
    producer: str
    zero_points: str
    scheme: Scheme
    evidence: str = ""
    signed: bool = False

    @property
    def label(self) -> str:
        """As tables call it: "GPTQ v1"."""
        return f"{self.format}, negative scales" if self.signed else self.format

    def semantics(self) -> dict[str, str]:
        """The part of a record that names it."""
        return {
            "format": self.format,
            "producer": self.producer,
            "zero_points": self.zero_points,
            **({"evidence": self.evidence} if self.evidence else {}),
            **({"scales": "some negative"} if self.signed else {}),
            "baseline": "its own weights, dequantized",
        }

    def describe(self) -> str:
        """Format, scheme, producer and zero-points in one line."""
        return (
            f"{self.format}, {self.scheme.name}, producer {self.producer}, "
            f"zero-points: {self.zero_points}"
            + (f" ({self.evidence})" if self.evidence else "")
            + (", some scales negative" if self.signed else "")
        )


def find_checkpoint(folder: Path, levels: Part | None = None) -> Checkpoint | None:
    """The quantized checkpoint in a model's folder; None for full precision.

    levels are those that it may have besides the built-in ones. ModelError for a quantization that
    cannot be read.
    """
    status = (folder / "config.json").stat()
    return _examine(folder, levels, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _examine(folder: Path, levels: Part | None, _mtime_ns: int, _size: int) -> Checkpoint | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = isinstance(config, dict) and config.get("quantization_config")
    if not said and not any((folder / name).is_file() for name in QUANTIZATION_FILES):
        _refuse_integers(folder)
        return None
    from quant import ArtifactError
    from quant.checkpoint import read_scheme, runnable

    try:
        checkpoint, scheme = read_scheme(folder, _known(levels))
        runnable(checkpoint, (), folder)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    return Checkpoint(
        checkpoint.name,
        checkpoint.producer or "not named",
        checkpoint.zero_points,
        scheme,
        checkpoint.evidence,
        checkpoint.signed,
    )


def _refuse_integers(folder: Path) -> None:
    """ModelError for weights that are stored as integers although nothing says they are quantized.

    Loaded, each would be cast to a floating-point number, as if it had never had a scale. Only the
    headers are read.
    """
    chosen = chosen_weights(folder)
    for file in [] if chosen.pickled else chosen.paths:
        for name, entry in _header(file).items():
            kind = str(entry.get("dtype", "")) if isinstance(entry, dict) else ""
            if name.endswith((".weight", ".bias")) and kind.startswith(("I", "U")):
                raise ModelError(
                    f"{file}: {name} is stored as integers ({kind}), but config.json says nothing "
                    "of a quantization, so nobody knows their scales: get the full-precision "
                    "original, or a checkpoint with its quantization_config."
                )


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors; of a damaged one, nothing."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            return {}
        try:
            found = json.loads(stream.read(size))
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def _known(levels: Part | None) -> tuple[Part, ...]:
    return () if levels is None else (levels,)


def load_packed(
    folder: Path,
    kernel: str,
    device: str,
    dtype: str,
    attention: str,
    transforms: Sequence[Transform] = (),
    levels: Part | None = None,
    *,
    trust: bool = False,
) -> Any:
    """The model of a quantized folder, its layers on `kernel`.

    transforms  that the configuration names: they may stand in front of layers.
    levels      that it names: layers may have them.
    trust       whether the Python files of the folder are run.
    """
    import torch

    from quant import load

    return load(
        folder,
        kernel=kernel,
        device=device,
        dtype=getattr(torch, dtype),
        levels=_known(levels),
        transforms=transforms,
        attn_implementation=attention,
        trust_remote_code=trust,
    )


def load_dequantized(
    folder: Path,
    kernel: str,
    device: str,
    dtype: str,
    attention: str,
    levels: Part | None = None,
    *,
    trust: bool = False,
) -> Any:
    """The same model with its weights dequantized: the baseline where no original is at hand."""
    import torch

    from quant.checkpoint import dequantize_layers

    model = load_packed(folder, kernel, device, dtype, attention, levels=levels, trust=trust)
    dequantize_layers(model, getattr(torch, dtype))
    return model


def packed_shapes(model: Any) -> list[tuple[int, int]]:
    """(outputs, inputs) of every packed layer of a model."""
    from quant import QuantLinear

    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    return [(layer.out_features, layer.in_features) for layer in layers]
