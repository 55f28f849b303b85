"""Quantized checkpoints from elsewhere: reading their metadata, and loading.

Their cells have method=none and the scheme of the files; the record has format and producer.
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
    from quant.budget import AnyScheme
    from quant.spread.place import Over
    from quant.transforms.base import Transform


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The metadata of a quantized checkpoint.

    zero_points  meaning of the stored zero-points, and how certain it is.
    evidence     how the meaning was found, if the files do not state it.
    signed       it has negative scales.
    mixture      its layers by scheme, in words, if there are several; `scheme` is the usual one.
    activations  the grids to which operators in front of its layers round: a8; "" if none does.
    """

    format: str
    producer: str
    zero_points: str
    scheme: AnyScheme
    evidence: str = ""
    signed: bool = False
    mixture: str = ""
    activations: str = ""

    @property
    def label(self) -> str:
        """Its name in tables, such as "GPTQ v1"."""
        words = [self.format]
        words += ["negative scales"] if self.signed else []
        return ", ".join([*words, "simulated activations"] if self.activations else words)

    def semantics(self) -> dict[str, str]:
        """Its entry in the configuration of a record."""
        return {
            "format": self.format,
            "producer": self.producer,
            "zero_points": self.zero_points,
            **({"evidence": self.evidence} if self.evidence else {}),
            **({"scales": "some negative"} if self.signed else {}),
            **({"schemes": self.mixture} if self.mixture else {}),
            **({"activations": self.activations} if self.activations else {}),
            "baseline": "its own weights, dequantized",
        }

    def describe(self) -> str:
        """Format, scheme, producer and zero-points in one line."""
        return (
            f"{self.format}, {self.mixture or self.scheme.name}, producer {self.producer}, "
            f"zero-points: {self.zero_points}"
            + (f" ({self.evidence})" if self.evidence else "")
            + (", some scales negative" if self.signed else "")
            + (f", simulated activations {self.activations}" if self.activations else "")
        )


def find_checkpoint(folder: Path, levels: Part | None = None) -> Checkpoint | None:
    """The quantized checkpoint in a model's folder; None for full precision.

    levels  a user's module of levels, allowed besides the built-in ones.

    Raises ModelError for a quantization that cannot be read.
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
    from quant.checkpoint.operators import grids_of

    try:
        checkpoint, scheme = read_scheme(folder, _known(levels))
        operators = runnable(checkpoint, (), folder).operators
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    return Checkpoint(
        checkpoint.name,
        checkpoint.producer or "not named",
        checkpoint.zero_points,
        scheme,
        checkpoint.evidence,
        checkpoint.signed,
        checkpoint.mixture,
        activations=grids_of(operators),
    )


def _refuse_integers(folder: Path) -> None:
    """Raise ModelError for integer weights in a checkpoint without a quantization config.

    The loader would cast them to floating point without their scales. Reads only the headers.
    """
    chosen = chosen_weights(folder)
    for file in [] if chosen.pickled else chosen.paths:
        for name, entry in _header(file).items():
            kind = str(entry.get("dtype", "")) if isinstance(entry, dict) else ""
            if name.endswith((".weight", ".bias")) and kind.startswith(("I", "U")):
                raise ModelError(
                    f"{file}: {name} is stored as integers ({kind}), but config.json has no "
                    "quantization_config, so their scales are unknown: get the full-precision "
                    "original, or a checkpoint with its quantization_config."
                )


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file; empty for a damaged file."""
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
    over: Over | None = None,
) -> Any:
    """Load a quantized folder with its layers on `kernel`.

    transforms  of the configuration, whose operators may stand in front of layers.
    levels      the user's module of levels of the configuration.
    trust       run the Python files of the folder.
    over        several devices for its blocks, in place of `device`.
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
        over=over,
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
    over: Over | None = None,
) -> Any:
    """The model with dequantized weights: the baseline if the original is not available."""
    import torch

    from quant.checkpoint import dequantize_layers

    model = load_packed(
        folder, kernel, device, dtype, attention, levels=levels, trust=trust, over=over
    )
    dequantize_layers(model, getattr(torch, dtype))
    return model


def packed_bits(model: Any) -> list[tuple[int, float]]:
    """The weights of every packed layer of a model, and their stored bits."""
    from quant.factored import PackedLinear

    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    return [(layer.out_features * layer.in_features, layer.stored_bits) for layer in layers]
