"""Find out how much memory this process may still allocate."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PLACES = ("cuda", "cpu", "disk")  # where hidden states are stored between blocks, fastest first

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CGROUPS = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # cgroup v1 writes a huge number for "no limit"


@dataclass(frozen=True)
class Limits:
    """Free bytes; None if unknown on this platform.

    device  free memory of the GPU that blocks run on; None without a GPU.
    host    host memory that the process may still allocate: the minimum of the machine's available
            memory, the limits of its control groups and its own resource limits.
    disk    free space of the file system of the working folder.
    """

    device: int | None = None
    host: int | None = None
    disk: int | None = None


def free_memory(device: str | torch.device, folder: Path | None = None) -> Limits:
    """Return the free bytes of `device`, of host memory and of the disk of `folder`."""
    on_device = None
    if str(device).partition(":")[0] == "cuda":
        import torch

        on_device = torch.cuda.mem_get_info(torch.device(device))[0]
    disk = None
    if folder is not None:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        disk = shutil.disk_usage(existing).free
    return Limits(on_device, free_host_memory(), disk)


def free_host_memory() -> int | None:
    """Return the bytes of host memory that the process may still allocate; None if unknown."""
    found = [*_machine(), *_control_groups(), *_resource_limits()]
    return max(0, min(found)) if found else None


def _machine() -> Iterator[int]:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = _MEMINFO.read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        yield int(line.split()[1]) * 1024
        return
    with contextlib.suppress(AttributeError, ValueError, OSError):  # macOS; Windows has none
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Yield limit minus use of every control group of this process, versions 1 and 2.

    Use includes page cache, which the kernel reclaims on demand, so inactive file pages are
    subtracted.
    """
    for folder, limit, use in _memory_groups(root):
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text())  # "max" is a ValueError: no limit
            if most < _UNLIMITED:
                yield most - int((folder / use).read_text()) + _cache(folder)


def _memory_groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    try:
        lines = _CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):  # a parent's limit holds for its children
            if not group.is_relative_to(base):
                break
            yield (group, *names)


def _cache(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, value = line.split()
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0


def _resource_limits() -> Iterator[int]:
    """Yield what ulimit -v and ulimit -d leave."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for limit, used in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            with contextlib.suppress(OSError, StopIteration, ValueError):
                lines = _STATUS.read_text().splitlines()
                line = next(line for line in lines if line.startswith(used))
                yield most - int(line.split()[1]) * 1024
