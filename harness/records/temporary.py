"""Temporary files beside the results, and removal of those that killed processes left.

A writer locks its file, and the system releases the lock when the process ends in any way. So an
unlocked file is abandoned, on every machine that shares the folder.
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
except ImportError:  # Windows has no locks, so nothing is removed
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".tmp"
YOUNG_SECONDS = 60.0  # a file is locked a moment after it was created
SCRATCH_SECONDS = 24 * 3600.0  # hidden states are rewritten with every block
PATTERNS = (
    ".locks/.*",
    "cells/*/.*",
    "references/*/.*",
    "reports/*/.*",
    "reports/*/*/.*",
    "runs/*/.*",
)


def make_temporary(folder: Path, name: str) -> tuple[int, str]:
    """Create, open and lock an empty file in `folder`: (descriptor, path). Raises OSError."""
    prefix = f".{name[:100]}."
    handle, path = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=SUFFIX)
    if fcntl is not None:
        with contextlib.suppress(OSError):  # without locks, files are never removed
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return handle, path


def remove_abandoned(root: Path) -> list[Path]:
    """Remove the files of killed processes under a results folder; return their paths.

    Partial artifacts stay, because a quantization resumes from them.
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
    except OSError:  # renamed meanwhile, or not readable
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
