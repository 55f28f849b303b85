"""What keys say about texts: a hash of what a protocol reads, and settings without folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.data import specials, texts
from harness.data.protocols import Protocol
from harness.records.hashes import digest, file_sha256


def protocol_hash(protocol: Protocol, path: str | None, data_dir: str | None) -> str:
    """Hash of what a protocol reads: a local file, our generator, or the pinned file of the hub."""
    if protocol.source == "embedded":
        content = generator_hash()
    elif path is not None:
        file = texts.locate(path, data_dir)
        if protocol.source in texts.HUB_TEXTS:
            file = texts.local_file(protocol.source, file)
        content = file_sha256(file)
    else:
        text = texts.HUB_TEXTS[protocol.source]
        content = f"{text.dataset}@{text.revision}/{text.file}"
    return digest([protocol.id, protocol.version, content, specials.VERSION])


def generator_hash() -> str:
    """sha256 of the sources of the story generator."""
    folder = Path(__file__).parents[1] / "embedded"
    names = ("stories.py", "lexicon.py")
    return digest([file_sha256(folder / name) for name in names if (folder / name).is_file()])


def without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Paths as file names: where a file lies does not change what is in it.

    Of the keys `path` (one path), `paths` and `files` (name -> path).
    """
    cleaned = dict(settings)
    if cleaned.get("path") is not None:
        cleaned["path"] = Path(cleaned["path"]).name
    for key in ("paths", "files"):
        if key in cleaned:
            cleaned[key] = {name: Path(path).name for name, path in cleaned[key].items()}
    return cleaned
