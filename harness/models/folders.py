"""Folders of models: what must be in one, its fingerprint, and loading it in full precision."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.models.described import require_described
from harness.records.hashes import file_sha256

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# What early quantized checkpoints have instead of a quantization_config in config.json.
QUANTIZATION_CONFIGS = ("quantize_config.json", "quant_config.json")
IDENTITY = (
    "config.json",
    *QUANTIZATION_CONFIGS,
    *TOKENIZERS,
    "merges.txt",
    "tokenizer_config.json",
)


def check_folder(folder: Path, what: str) -> Path:
    """The same folder when it holds a complete model; ModelError says what is missing.

    what  names the folder in messages.
    """
    if not folder.is_dir():
        raise ModelError(f"{what} is not a folder: give one with config.json, weights, tokenizer.")
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{what} has no config.json, so it is not a Hugging Face model folder: "
            "point to the folder that save_pretrained wrote."
        )
    require_described(file, what)
    if not weight_files(folder):
        raise ModelError(
            f"{what} has no weights (*.safetensors or pytorch_model*.bin): copy them beside "
            "config.json."
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            f"{what} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json): copy the "
            "tokenizer files of the original model beside the weights."
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files of the weights, in the order of their names."""
    for pattern in WEIGHTS:  # safetensors win over .bin, as in transformers
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of the files that decide what a model computes."""
    files = [folder / name for name in IDENTITY if (folder / name).is_file()]
    files += weight_files(folder)
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def text_config(folder: Path) -> dict[str, Any]:
    """config.json of the model; the text part of a multimodal one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def load_model(folder: Path, config: ModelConfig, device: str = "cpu") -> Any:
    """The causal LM in eval mode, in config.dtype, on `device`, attention as configured."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            local_files_only=True,
        )
    except Exception as error:
        raise ModelError(
            f"model={config.name}: the weights could not be read ({first_line(error)}); the files "
            "may be incomplete, fetch or copy them again."
        ) from error
    return model.to(device).eval()  # type: ignore[arg-type]


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """The tokenizer of the model in `folder`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"model={config.name}: the tokenizer could not be read ({first_line(error)}); "
            "copy the tokenizer files of the original model beside the weights."
        ) from error


def first_line(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
