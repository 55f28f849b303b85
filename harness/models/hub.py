"""Models of the Hugging Face hub: the snapshot in its local cache, fetched when asked for."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import ModelError
from harness.models.folders import check_folder, first_line


def hub_folder(repository: str, revision: str | None, download: bool) -> Path | None:
    """The folder of a complete snapshot; None for one that is not here and not to be fetched.

    Raises ModelError when it cannot be fetched.
    """
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
            f"model.id={repository} could not be fetched from the hub ({first_line(error)}): check "
            "the name, the network and, for gated models, your login; or use model=local "
            "model.path=FOLDER."
        ) from error


def _cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the hub's local cache, if it is complete enough to load."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        return check_folder(folder, repository)
    except (LocalEntryNotFoundError, ModelError):
        return None


def _patterns(repository: str, revision: str | None) -> list[str]:
    """Files worth fetching: one format of weights, tokenizer and configuration."""
    from huggingface_hub import HfApi

    names = [s.rfilename for s in HfApi().model_info(repository, revision=revision).siblings or []]
    safetensors = any("/" not in n and n.endswith(".safetensors") for n in names)
    weights = ["*.safetensors"] if safetensors else ["pytorch_model*.bin"]
    return [*weights, "*.json", "*.model", "*.txt"]
