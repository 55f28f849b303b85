"""The hashes of values and files, of which keys are made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cuda_ext.cache import cache_root, write_atomically

SHA256_DIGITS = 64
KEPT_BYTES = 2**20  # a smaller file is read as quickly as its cache entry
SETTLED_SECONDS = 3.0  # time stamps of FAT have a resolution of 2 s
CHUNK_BYTES = 2**22

Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
# Called with the number of bytes read from a file.
_step: ContextVar[Callable[[int], None]] = ContextVar("step", default=lambda _: None)


def digest(value: Any) -> str:
    """sha256 of canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's content; links are followed.

    The hash is cached in this process and, for a large file, on disk (folder `hashes` of
    cuda_ext.cache), by path, size, modification time, change time and inode. A change of content
    changes one of these, except within the resolution of the file system's clock (up to 2 s);
    therefore the hash of a file that was just written is not cached.
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
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["identity"] == list(identity) and len(said["sha256"]) == SHA256_DIGITS:
            return str(said["sha256"])
    found = _read(place)
    with contextlib.suppress(OSError):  # the file is read again next time
        write_atomically(file, json.dumps({"identity": identity, "sha256": found}) + "\n")
    return found


def files_sha256(what: str, paths: Sequence[Path]) -> list[str]:
    """file_sha256 of several files; reports progress to the listener of `told`, as `what`."""
    total, done, found = sum(path.stat().st_size for path in paths), 0, []
    tell = _listener.get()
    for path in paths:
        token = _step.set(partial(_tell, tell, what, done, total))
        try:
            found.append(file_sha256(path))
        finally:
            _step.reset(token)
        done += path.stat().st_size
    return found


@contextlib.contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Context: `files_sha256` calls listener(what, bytes done, total bytes) while it reads."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def _tell(listener: Listener | None, what: str, before: int, total: int, done: int) -> None:
    if listener is not None:
        listener(what, before + done, total)


def _read(place: str) -> str:
    digest, buffer, done = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES)), 0
    step = _step.get()
    with open(place, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            step(done)
    return digest.hexdigest()
