"""Models of the Hugging Face hub: snapshots in its local cache, downloaded on request."""

from __future__ import annotations

from pathlib import Path

from harness.data import hub, lock
from harness.errors import ModelError, Unavailable
from harness.models.folders import check_folder, first_line
from quant.checkpoint.files import INDEX_SUFFIX, TOKENIZER_FILES, choose


def hub_folder(
    repository: str, revision: str | None, download: bool, code: bool = False
) -> Path | None:
    """The folder of a complete snapshot; None if it is not cached and `download` is False.

    code  download the model's own Python files too.

    Raises Unavailable if the download fails, or if the hub says that it would.
    """
    from huggingface_hub import snapshot_download

    wanted = hub.need(hub.Wanted(hub.MODEL, repository, revision))
    locked = lock.snapshot(wanted)
    if locked is not None:
        return _locked_snapshot(repository, locked[0].revision)
    cached = _cached_snapshot(repository, revision)
    if cached is not None:
        return cached
    if not hub.offline():
        _require(wanted)
    if not download:
        return None
    if hub.offline():
        raise Unavailable(
            f"model.id={repository} is not on this machine and HF_HUB_OFFLINE is set: unset it to "
            "download, or use model=local model.path=FOLDER."
        )
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns(repository, revision, code),
        )
    except Exception as error:
        raise Unavailable(
            f"model.id={repository} could not be downloaded from the hub ({first_line(error)}): "
            "check the name, the network and, for gated models, your login; or use model=local "
            "model.path=FOLDER."
        ) from error
    hub.forget(wanted)
    return Path(folder)


def _locked_snapshot(repository: str, commit: str) -> Path:
    """The snapshot of a commit in the hub's local cache; ModelError if it is not complete."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(repository, revision=commit, local_files_only=True)
    return check_folder(Path(folder), f"model.id={repository}")


def _require(wanted: hub.Wanted) -> None:
    """Raise Unavailable for a model that the hub refuses."""
    refused = hub.ask(wanted).refused
    if refused is not None:
        why, step = refused
        raise Unavailable(
            f"model.id={wanted.repository} is not on this machine and could not be downloaded, "
            f"because {why}; {step}, or use model=local model.path=FOLDER."
        )


def _cached_snapshot(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the hub's local cache, if it is complete enough to load."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        return check_folder(folder, repository)
    except HFValidationError as error:
        raise ModelError(
            f"model.id={repository} is not the name of a repository: use OWNER/NAME, or "
            "model=local model.path=FOLDER."
        ) from error
    except (LocalEntryNotFoundError, ModelError):
        return None


def patterns(repository: str, revision: str | None, code: bool = False) -> list[str]:
    """Patterns of the files to download: the weights that are read, tokenizer, configuration.

    code  the model's own Python files too.
    """
    import json

    from huggingface_hub import HfApi, hf_hub_download

    names = [s.rfilename for s in HfApi().model_info(repository, revision=revision).siblings or []]
    chosen = choose(names)
    if chosen is None:  # a quantized checkpoint with other file names
        weights = [n for n in names if "/" not in n and n.endswith((".safetensors", ".bin"))]
    elif chosen.endswith(INDEX_SUFFIX):
        index = Path(hf_hub_download(repository, chosen, revision=revision))
        weights = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        weights = [chosen]
    own = ["*.py"] * code
    return [*weights, "*.json", "*.model", "*.txt", *TOKENIZER_FILES, *own]
