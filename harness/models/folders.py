"""Model folders: required files, the fingerprint, and loading in full precision."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.models.described import require_described
from harness.records.hashes import files_sha256
from quant.checkpoint.files import (
    QUANTIZATION_FILES,
    TOKENIZER_FILES,
    WeightFiles,
    weight_files,
)
from quant.checkpoint.foreign import refuse_foreign
from quant.errors import ArtifactError

if TYPE_CHECKING:
    from quant.spread.place import Over

# A tokenizer needs one of these files.
TOKENIZERS = tuple(
    name
    for name in TOKENIZER_FILES
    if name.startswith(("tokenizer.", "vocab.", "tekken", "tiktoken")) or name.endswith(".model")
)
IDENTITY = ("config.json", *QUANTIZATION_FILES, *TOKENIZER_FILES)


def check_folder(folder: Path, what: str) -> Path:
    """Return the folder if it has a complete model; else raise ModelError on what is missing.

    what  the name of the folder in messages.
    """
    try:
        refuse_foreign(folder)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    if not folder.is_dir():
        raise ModelError(f"{what} is not a folder: give one with config.json, weights, tokenizer.")
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{what} has no config.json, so it is not a Hugging Face model folder: "
            "point to the folder that save_pretrained wrote."
        )
    require_described(file, what)
    chosen_weights(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            f"{what} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json): copy the "
            "tokenizer files of the original model beside the weights."
        )
    return folder


def chosen_weights(folder: Path) -> WeightFiles:
    """The weight files that quant.checkpoint.files chooses; ModelError if there are none."""
    try:
        return weight_files(folder)
    except ArtifactError as error:
        raise ModelError(str(error)) from error


def folder_fingerprint(folder: Path, trust_remote_code: bool = False) -> str:
    """sha256 over the names and contents of the files that determine what a model computes.

    trust_remote_code  include the model's Python files.
    """
    files = [folder / name for name in IDENTITY if (folder / name).is_file()]
    files += chosen_weights(folder).paths
    if trust_remote_code:
        files += folder.glob("*.py")
    digest = hashlib.sha256()
    files.sort(key=lambda path: path.name)
    for file, found in zip(files, files_sha256(folder.name, files), strict=True):
        digest.update(f"{file.name} {found}\n".encode())
    return digest.hexdigest()


def text_config(folder: Path) -> dict[str, Any]:
    """config.json of the model; its text part for a multimodal model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def load_model(
    folder: Path, config: ModelConfig, device: str = "cpu", over: Over | None = None
) -> Any:
    """Load the causal LM in eval mode, in config.dtype, on `device`, with the configured attention.

    over  several devices for its blocks, in place of `device`.

    Raises ModelError, with their names, for missing or unexpected tensors in the files, and
    NotEnoughMemory if the model does not fit on several devices.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from harness.models.several import connected, planned

    placed: dict[str, Any] = {}
    if over is not None:
        spread, placed["device_map"] = planned(folder, config.dtype, config.trust_remote_code, over)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            local_files_only=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # mismatches are reported, and refused below by name
            **placed,
        )
    except Exception as error:
        _refuse_code(folder, error)
        raise ModelError(
            f"model={config.name}: the weights could not be read ({first_line(error)}); the files "
            "may be incomplete: download or copy them again."
        ) from error
    model, info = loaded
    _require_all(folder, model, info)
    return model.to(device).eval() if over is None else connected(model, spread)


def load_tokenizer(folder: Path, config: ModelConfig) -> Any:
    """Load the tokenizer in `folder`; ModelError if it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:
        _refuse_code(folder, error)
        raise ModelError(
            f"model={config.name}: the tokenizer could not be read ({first_line(error)}); "
            "copy the tokenizer files of the original model beside the weights."
        ) from error


def weights_read(folder: Path, model: Any) -> dict[str, Any]:
    """Record entries on the weight files of a loaded model.

    read    the file, or the index of the shards.
    unread  other weight files beside it.
    keys    tensors that only the files or only the model have, and why that is harmless.
    """
    from quant.checkpoint.matching import differences

    chosen = chosen_weights(folder)
    return {
        "read": chosen.index or chosen.names[0],
        "unread": list(chosen.unread),
        "keys": differences(model, folder).summary(),
    }


def _require_all(folder: Path, model: Any, info: dict[str, Any]) -> None:
    """Raise ModelError for tensors that the loader initialized at random or ignored.

    transformers only warns about both.
    """
    from quant.checkpoint.matching import Differences, differences

    lost = sorted(info["unexpected_keys"])
    if lost:
        lost = sorted(set(lost) - set(differences(model, folder).harmless))
    mismatched = {name: tuple(stored) for name, stored, _ in sorted(info["mismatched_keys"])}
    found = Differences(tuple(sorted(info["missing_keys"])), tuple(lost), {}, mismatched)
    fault = found.fault(type(model).__name__)
    if fault is not None:
        raise ModelError(f"{folder}: {fault}")


def _refuse_code(folder: Path, error: Exception) -> None:
    """Raise ModelError with the next step if transformers asks to trust the model's own code."""
    if "trust_remote_code" in str(error):
        from quant.checkpoint.skeleton import refusal_of_code

        raise ModelError(refusal_of_code(folder)) from error


def first_line(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
