"""Where large tensors lie, so that a run over many blocks is neither slow nor grows.

A page that a process takes from the system is cleared and mapped when it is first touched, and
torch takes the memory of every result anew. What glibc does by default is wrong for both kinds of
tensors here: the intermediate values of a block, which have the same sizes in every batch, go back
to the system and are taken again (measured: half of the time of a calibration), while the weights
of block after block come to lie in heaps, one a thread, in which they leave holes. So heaps keep
what is freed until `trim_heap`, and weights get memory of their own, which leaves with them.
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
# Results of at least this size are mapped one by one: the work on them hides the price of their
# pages, and the holes that they would leave in a heap are as large as they are. (Older versions of
# glibc take no larger bound.)
LARGE = 32 << 20
KEPT = (1 << 31) - 1  # as much as the setting, an int, can say
HUGE = 2 << 20  # pages of 2 MiB are taken 8 times as fast as the same memory in 4 KiB (measured)
# What is smaller shares pages with others.
OWN = 256 << 10


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next result of that size; True where that was done.

    A setting of the whole process; elsewhere than on glibc nothing is done. What is kept counts as
    resident until `trim_heap`.
    """
    library = _glibc()
    if library is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGE), (_M_TRIM_THRESHOLD, KEPT))
    return all([library.mallopt(*setting) for setting in settings])


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """keep_freed_memory, and at the end, also that of an error, trim_heap."""
    keep_freed_memory()
    try:
        yield
    finally:
        trim_heap()


def trim_heap() -> None:
    """Return what is freed and kept to the system, wherever in a heap it lies."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def own_copy(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of a tensor on the CPU, in `dtype`, in pages that go when it does."""
    return own_zeros(tensor.shape, dtype or tensor.dtype).copy_(tensor)


def own_zeros(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Zeros; on the CPU in pages that go when the tensor does, and come when they are written."""
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < OWN or _glibc() is None:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # no room, as it seems: torch tries, and says how much was wanted
        return torch.zeros(tuple(shape), dtype=dtype)
    if size >= HUGE:
        with contextlib.suppress(OSError):  # a kernel without them
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
