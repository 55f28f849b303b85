"""The two hashes that keys are made of: of a value, and of a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from cuda_ext.cache import cache_root, write_atomically

SHA256_DIGITS = 64
KEPT_BYTES = 2**20  # smaller files are read as quickly as what is kept of them
SETTLED_SECONDS = 3.0  # FAT counts in steps of two


def digest(value: Any) -> str:
    """sha256 of canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of what a file holds; a link is followed, whatever its target is called.

    A file that is unchanged is not read twice: its hash is kept in this process and, of a large
    one, in the folder hashes of the cache (cuda_ext.cache), under its place with its size, time of
    modification, time of change and inode. That is safe where one of these changes with the
    content; the clock of some file systems stands still for two seconds, so a file that was
    written just now is read again.
    """
    place, status = str(path.resolve()), path.stat()
    identity = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
        return _read(place)
    return _kept(place, identity)


@lru_cache(maxsize=4096)
def _kept(place: str, identity: tuple[int, ...]) -> str:
    if identity[0] < KEPT_BYTES:
        return _read(place)
    file = cache_root() / "hashes" / f"{digest(place)[:32]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["identity"] == list(identity) and len(said["sha256"]) == SHA256_DIGITS:
            return str(said["sha256"])
    found = _read(place)
    with contextlib.suppress(OSError):  # then it is read again next time
        write_atomically(file, json.dumps({"identity": identity, "sha256": found}) + "\n")
    return found


def _read(place: str) -> str:
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
