"""The user's cache folder, for built libraries and model shapes.

It is $BITSWEEP_CACHE, or $XDG_CACHE_HOME/bitsweep, or ~/.cache/bitsweep.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

_SUFFIX = ".tmp"
_ABANDONED_SECONDS = 3600.0


def cache_root() -> Path:
    """Return the cache folder, which may not exist yet."""
    if named := os.environ.get("BITSWEEP_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitsweep"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new text; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=_SUFFIX)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        replace_durably(Path(name), path)
    except BaseException:
        os.unlink(name)
        raise


def replace_durably(made: Path, path: Path) -> None:
    """Rename a finished file to `path` once its content is on disk; raises OSError."""
    with made.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(made, path)


def remove_killed_builds(folder: Path, scratch: Path) -> None:
    """Remove the objects of killed builds, except `scratch`; the entry must be locked."""
    for left in folder.glob("tmp*"):
        if left != scratch and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove old files of killed writers; no writer takes an hour."""
    for left in folder.glob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()
