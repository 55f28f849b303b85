"""What keys say about texts: a hash of what a protocol reads, and settings without folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.data import specials
from harness.data.protocols import Protocol, content
from harness.records.hashes import digest


def protocol_hash(protocol: Protocol, path: str | None, data_dir: str | None) -> str:
    """Hash of a protocol and of what it reads, from `path` instead of its own source if given."""
    read = content(protocol, path, data_dir)
    return digest([protocol.id, protocol.version, read, specials.VERSION])


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
