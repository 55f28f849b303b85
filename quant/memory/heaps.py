"""Allocator settings that keep a run over many blocks fast and its memory bounded.

The system clears and maps every new page at its first use, and torch allocates a new tensor for
every result. glibc's defaults are bad for two kinds of tensors. The intermediate values of a block
have the same sizes in every batch, but glibc returns them to the system and maps them again
(measured: half of the time of a calibration). The weights of successive blocks are placed in heaps,
one per thread, and leave holes there when they are freed. Therefore freed memory is kept in the
heap until `trim_heap`, and weights get a mapping of their own, which is unmapped when they are
freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
# Results of at least this size get a mapping of their own: the work on them hides the cost of new
# pages, and in a heap they would leave large holes. (32 MiB is the maximum of older glibc.)
LARGE = 32 << 20
KEPT = (1 << 31) - 1  # maximum of the setting, an int
HUGE = 2 << 20  # 2 MiB pages are mapped 8 times as fast as the same memory in 4 KiB (measured)
# Smaller tensors share pages with others.
OWN = 256 << 10


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for later results; return whether that was possible.

    The setting applies to the whole process and exists only with glibc. Memory that is kept counts
    as resident until `trim_heap`.
    """
    library = _glibc()
    if library is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGE), (_M_TRIM_THRESHOLD, KEPT))
    return all([library.mallopt(*setting) for setting in settings])


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Call keep_freed_memory, and trim_heap at the end (also after an error)."""
    keep_freed_memory()
    try:
        yield
    finally:
        trim_heap()


def trim_heap() -> None:
    """Return all freed memory in the heaps to the system."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def own_copy(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to the CPU, in `dtype`, into pages that are freed with the copy."""
    kept = dtype or tensor.dtype
    if tensor.numel() * kept.itemsize < OWN:
        return tensor.to("cpu", kept, copy=True)
    return own_zeros(tensor.shape, kept).copy_(tensor)


def own_zeros(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Return zeros; on the CPU in pages that are mapped when written and freed with the tensor."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < OWN or _glibc() is None:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # probably out of memory: torch's own error says how much was requested
        return torch.zeros(tuple(shape), dtype=dtype)
    if size >= HUGE:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(tuple(shape))


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt, library.malloc_trim  # noqa: B018 (another C library has them not)
    except (OSError, AttributeError):
        return None
    return library
