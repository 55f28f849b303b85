"""Markers that a built library was loaded here before, so that a plan need not load it.

Loading requires importing torch, which takes seconds. A marker has the sha256 of the library, so
that a replaced library is loaded again. Its name covers everything else that determines whether
loading succeeds: the torch version, the processor's instruction sets and the C library.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from functools import cache
from pathlib import Path

from cuda_ext import installed
from cuda_ext.cache import write_atomically

_CPUINFO = Path("/proc/cpuinfo")

_log = logging.getLogger("cuda_ext")


def digest(library: Path) -> str:
    """Return the sha256 of the library; OSError if it cannot be read."""
    with library.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def loaded_before(library: Path) -> bool:
    """Whether this library was loaded by this torch on a machine like this one."""
    try:
        return _marker(library).read_text(encoding="utf-8") == digest(library)
    except (OSError, UnicodeDecodeError):
        return False


def note_loaded(library: Path, sha256: str) -> None:
    """Record that the library with this digest was loaded here; ignored in a read-only cache."""
    marker = _marker(library)
    try:
        if not marker.is_file() or marker.read_bytes() != sha256.encode():
            write_atomically(marker, sha256)
    except OSError as error:
        _log.info("plans will load the kernels again: %s cannot be written (%s)", marker, error)


def _marker(library: Path) -> Path:
    return library.with_name(f"loaded-{_here()}.txt")


@cache
def _here() -> str:
    """Return sixteen hexadecimal digits for this torch on this kind of machine."""
    facts = [
        installed.torch_version(),
        str(installed.torch_folder()),
        platform.machine(),
        _instruction_sets(),
        _c_library(),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _instruction_sets() -> str:
    """Return the flags of the first processor; "" if unknown."""
    try:
        with _CPUINFO.open(encoding="utf-8") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""
