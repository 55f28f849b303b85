"""The folder of this user where what was made once is kept: libraries, shapes of models.

It is BITSWEEP_CACHE, or bitsweep in XDG_CACHE_HOME, or ~/.cache/bitsweep.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_root() -> Path:
    """The folder of the cache, which need not be there yet."""
    if named := os.environ.get("BITSWEEP_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitsweep"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new one; OSError where it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
