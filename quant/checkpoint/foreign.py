"""Recognise models in known formats that are not read, and say in one sentence what to do instead.

Whoever looks for weights or for a quantization calls `refuse_foreign` first, so that these models
are refused at plan time and under their own names, and not for a part that they never had.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.errors import ArtifactError

# Folders of a repository in which exporters put their files.
EXPORTS = (".", "onnx")
# Weights that are read; a folder that has them too is a model for itself.
READ = ("*.safetensors", "pytorch_model*.bin")


def refuse_foreign(path: Path) -> None:
    """Raise ArtifactError for an ONNX, HQQ or MLX model in a file or folder; else do nothing."""
    for found in (_onnx(path), _pickled_hqq(path), _mlx(path)):
        if found is not None:
            raise ArtifactError(found)


def _onnx(path: Path) -> str | None:
    files = _files(path, ".onnx", [path / each for each in EXPORTS])
    if not files:
        return None
    return (
        f"{files[0]} is a graph of ONNX, which is not read: run it with ONNX Runtime, or give the "
        "folder of safetensors that it was exported from."
    )


def _pickled_hqq(path: Path) -> str | None:
    files = [each for each in _files(path, ".pt", [path]) if each.name == "qmodel.pt"]
    if not files:
        return None
    return (
        f"{files[0]} is what hqq's save_quantized wrote, a pickle, and pickles are not read: "
        "quantize again with HqqConfig of transformers 4 and save_pretrained, which writes "
        "safetensors."
    )


def _mlx(path: Path) -> str | None:
    """Recognise MLX by its own key; quantization_config is the same there, or missing."""
    config = config_of(path)
    said = config.get("quantization")
    ours = config.get("quantization_config")
    named = isinstance(ours, Mapping) and "quant_method" in ours
    if named or not isinstance(said, Mapping) or not {"bits", "group_size"} <= said.keys():
        return None
    return (
        f"{path / 'config.json'} says quantization={{bits: {said['bits']}, group_size: "
        f"{said['group_size']}}}, which is MLX's packed format and is not read: give the original "
        "model, or write the weights in full precision with `mlx_lm.convert --dequantize`."
    )


def _files(path: Path, suffix: str, folders: list[Path]) -> list[Path]:
    """Return `path` if it is such a file, or those in `folders` if `path` has no other weights."""
    if path.is_file():
        return [path] if path.suffix == suffix else []
    if any(True for pattern in READ for _ in path.glob(pattern)):
        return []
    return sorted(found for each in folders for found in each.glob(f"*{suffix}"))


def config_of(folder: Path) -> Mapping[str, Any]:
    """Return the config.json of a folder; {} if it cannot be read or is no object."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # the code that parses the configuration reports what is wrong with it
    return found if isinstance(found, dict) else {}
