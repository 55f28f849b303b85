"""The two hashes that keys are made of: of a value, and of a file."""

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
KEPT_BYTES = 2**20  # smaller files are read as quickly as what is kept of them
SETTLED_SECONDS = 3.0  # FAT counts in steps of two
CHUNK_BYTES = 2**22

Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
# What is called with the bytes that were read of a file.
_step: ContextVar[Callable[[int], None]] = ContextVar("step", default=lambda _: None)


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


def files_sha256(what: str, paths: Sequence[Path]) -> list[str]:
    """file_sha256 of several files; whoever listens (`told`) is told how far it is, as `what`."""
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
    """Inside, listener(what, bytes done, of all) is called while `files_sha256` reads files."""
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
