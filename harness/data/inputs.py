"""Texts in keys: the hash of what a protocol reads, and settings without folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from harness.data import specials
from harness.data.config import CalibConfig
from harness.data.protocols import Protocol, content
from harness.records.hashes import digest


def protocol_hash(protocol: Protocol, path: str | None, data_dir: str | None) -> str:
    """Hash of a protocol and of the text it reads, which is at `path` if that is given."""
    read = content(protocol, path, data_dir)
    return digest([protocol.id, protocol.version, read, specials.VERSION])


def calibration_settings(calib: CalibConfig) -> dict[str, Any]:
    """The settings of a calibration for keys and records.

    Without a chat template there is no key of it, as in records from before there was one.
    """
    found = without_folders(dataclasses.asdict(calib))
    if not calib.chat_template:
        del found["chat_template"]
    return found


def without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with paths reduced to file names, because a folder does not affect a file's content.

    Applies to the keys `path` (one path), `paths` and `files` (name -> path).
    """
    cleaned = dict(settings)
    if cleaned.get("path") is not None:
        cleaned["path"] = Path(cleaned["path"]).name
    for key in ("paths", "files"):
        if key in cleaned:
            cleaned[key] = {name: Path(path).name for name, path in cleaned[key].items()}
    return cleaned
