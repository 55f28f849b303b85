"""Temporary files beside the results: who still writes one, and which a killed writer left.

A writer holds a lock on its file, which the system releases when the process ends, however it ends.
So a file that nobody holds is waste, on every machine that shares the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is held there, so nothing is swept
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".tmp"
YOUNG_SECONDS = 60.0  # between a file's making and its lock a moment passes
SCRATCH_SECONDS = 24 * 3600.0  # hidden states on disk are written again with every block
PATTERNS = (".locks/.*", "cells/*/.*", "reports/*/.*", "reports/*/*/.*", "runs/*/.*")


def make_temporary(folder: Path, name: str) -> tuple[int, str]:
    """An open, empty and held file in `folder`: its descriptor and path. OSError."""
    prefix = f".{name[:100]}."
    handle, path = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=SUFFIX)
    if fcntl is not None:
        with contextlib.suppress(OSError):  # without locks, a file system's files are never swept
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return handle, path


def remove_abandoned(root: Path) -> list[Path]:
    """Remove what killed processes left under a results folder; what was removed.

    Working folders of unfinished artifacts stay: a quantization goes on from them.
    """
    files = [path for path in _temporary(root) if _abandoned(path)]
    for path in files:
        path.unlink(missing_ok=True)
    folders = [path for path in root.glob("scratch/*") if _untouched(path)]
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    return [*files, *folders]


def _temporary(root: Path) -> Iterator[Path]:
    for pattern in PATTERNS:
        yield from root.glob(f"{pattern}{SUFFIX}")


def _abandoned(path: Path) -> bool:
    if fcntl is None:
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # renamed meanwhile, or not ours to read
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(handle)
        return status.st_size > 0 or time.time() - status.st_mtime > YOUNG_SECONDS
    except OSError:
        return False
    finally:
        os.close(handle)


def _untouched(folder: Path) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
    except OSError:  # it is being removed
        return False
    return time.time() - newest > SCRATCH_SECONDS
