"""Where a model comes from: the package, a folder, the Hugging Face hub, or nowhere (dummy).

Everything is brought down to one thing, a complete Hugging Face folder, before a weight is read;
what is missing in it is said in one sentence.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.models import dummy

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
SHA256_DIGITS = 64


def model_folder(config: ModelConfig, download: bool = False) -> Path | None:
    """The folder that holds a complete model; None for a dummy and for a hub model not here yet.

    With download=True a hub model is fetched first. ModelError says what is missing.
    """
    if dummy.is_dummy(config):
        return None
    if config.source == "embedded":
        return _check_folder(_embedded_folder(), "the embedded model")
    if config.source == "local":
        if config.path is None:
            raise ModelError(
                "model=local needs a folder: add model.path=FOLDER (config.json, weights, "
                "tokenizer)."
            )
        return _check_folder(Path(config.path), f"model.path={config.path}")
    if config.id is None:
        raise ModelError(
            "model=hub needs to know which: add model.id=OWNER/NAME, for example "
            "model.id=EleutherAI/pythia-160m."
        )
    folder = _hub_folder(config.id, config.revision, download)
    return None if folder is None else _check_folder(folder, f"model.id={config.id}")


def load_model(config: ModelConfig, device: str = "cpu") -> Any:
    """The causal LM in eval mode, in config.dtype, on `device`, attention as configured."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = _complete_folder(config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            local_files_only=True,
        )
    except Exception as error:
        raise ModelError(
            f"model={config.name}: the weights could not be read ({_short(error)}); the files may "
            "be incomplete, fetch or copy them again."
        ) from error
    return model.to(device).eval()  # type: ignore[arg-type]


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of the model; None for a dummy, which reads no text."""
    from transformers import AutoTokenizer

    if dummy.is_dummy(config):
        return None
    folder = _complete_folder(config)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"model={config.name}: the tokenizer could not be read ({_short(error)}); "
            "copy the tokenizer files of the original model beside the weights."
        ) from error


def model_fingerprint(config: ModelConfig) -> str | None:
    """sha256 over weights, config.json and tokenizer files; None when not on this machine yet.

    Of a dummy, which has no files, over its dimensions.
    """
    if dummy.is_dummy(config):
        return dummy.fingerprint(config)
    folder = model_folder(config)
    return None if folder is None else folder_fingerprint(folder)


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of the files that decide what a model computes."""
    files = [folder / name for name in IDENTITY if (folder / name).is_file()]
    files += _weight_files(folder)
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda path: path.name):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file. The hub's cache names large files by it, which saves reading them."""
    name = path.resolve().name
    if path.is_symlink() and len(name) == SHA256_DIGITS and set(name) <= set("0123456789abcdef"):
        return name
    status = path.stat()
    return _sha256(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: str, _size: int, _mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _embedded_folder() -> Path:
    """The model in the package, found without importing the generator."""
    spec = importlib.util.find_spec("harness")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "embedded" / "model"


def _complete_folder(config: ModelConfig) -> Path:
    folder = model_folder(config, download=True)
    assert folder is not None
    return folder


def _check_folder(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise ModelError(f"{what} is not a folder: give one with config.json, weights, tokenizer.")
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"{what} has no config.json, so it is not a Hugging Face model folder: "
            "point to the folder that save_pretrained wrote."
        )
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{what}: config.json is not valid JSON ({error}); copy it again from the source."
        ) from error
    if not _weight_files(folder):
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


def _weight_files(folder: Path) -> list[Path]:
    for pattern in WEIGHTS:  # safetensors win over .bin, as in transformers
        files = sorted(folder.glob(pattern))
        if files:
            return files
    return []


def _hub_folder(repository: str, revision: str | None, download: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    cached = _cached_snapshot(repository, revision)
    if cached is not None or not download:
        return cached
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ModelError(
            f"model.id={repository} is not on this machine and HF_HUB_OFFLINE is set: unset it to "
            "download, or use model=local model.path=FOLDER."
        )
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=_patterns(repository, revision)
            )
        )
    except Exception as error:
        raise ModelError(
            f"model.id={repository} could not be fetched from the hub ({_short(error)}): check the "
            "name, the network and, for gated models, your login; or use model=local "
            "model.path=FOLDER."
        ) from error


def _cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the hub's local cache, if it is complete enough to load."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        return _check_folder(folder, repository)
    except (LocalEntryNotFoundError, ModelError):
        return None


def _patterns(repository: str, revision: str | None) -> list[str]:
    """Files worth fetching: one format of weights, tokenizer and configuration."""
    from huggingface_hub import HfApi

    names = [s.rfilename for s in HfApi().model_info(repository, revision=revision).siblings or []]
    safetensors = any("/" not in n and n.endswith(".safetensors") for n in names)
    weights = ["*.safetensors"] if safetensors else ["pytorch_model*.bin"]
    return [*weights, "*.json", "*.model", "*.txt"]


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
