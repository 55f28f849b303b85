"""The memory that a step takes beside what it was given: the tensors that live in it at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def workspace_bytes(
    step: Callable[[], object], device: str | torch.device, more: Sequence[str] = ()
) -> int:
    """Run `step` and return the bytes that it allocated at its peak; on `more` devices, too.

    On a GPU they are those of the caching allocator. On a processor they are those of the tensors
    that operators return; what an operator takes inside of itself is not seen. Resident memory
    would count weights that are paged in, and miss what the heap kept of an earlier step.
    """
    device = torch.device(device)
    if device.type == "cuda":
        devices = [device, *map(torch.device, more)]
        for each in devices:
            torch.cuda.synchronize(each)
            torch.cuda.reset_peak_memory_stats(each)
        before = sum(int(torch.cuda.memory_allocated(each)) for each in devices)
        step()
        for each in devices:
            torch.cuda.synchronize(each)
        return sum(int(torch.cuda.max_memory_allocated(each)) for each in devices) - before
    tracker = _Tracker()
    with tracker:
        step()
    return tracker.peak


class _Tracker(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._held: int = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator, and note the storages of what it returns."""
        result = func(*args, **(kwargs or {}))
        given = {_address(each) for each in tree_leaves((args, kwargs)) if _is_tensor(each)}
        for each in tree_leaves(result):
            if _is_tensor(each) and _address(each) not in given:
                self._note(each.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._held += size
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._held -= size


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
