"""The two hashes that keys are made of: of a value, and of a file."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

SHA256_DIGITS = 64


def digest(value: Any) -> str:
    """sha256 of canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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
