"""How many bytes a model holds, and how high memory rises while it works."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class MemoryPeak:
    """Highest memory during a step; working_bytes is the rise above what was held before it."""

    bytes: int
    working_bytes: int | None
    notes: dict[str, str]


def measure_peak(step: Callable[[], object], device: str) -> MemoryPeak:
    """Run `step` and say how high memory rose: of the device on CUDA, of the process otherwise."""
    if torch.device(device).type == "cuda":
        return _device_peak(step, device)
    return _process_peak(step)


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers as held in memory; shared storage counts once."""
    return _unique_bytes([*model.parameters(), *model.buffers()])


def embedding_bytes(model: Any) -> int:
    """Bytes of the embedding tables and the output layer, which stay in full precision."""
    return _unique_bytes([*_tables(model), *_output_layer(model)])


def bytes_per_token(model: Any) -> int:
    """Bytes of weights that one decode step reads: all but the tables it takes one row of."""
    output = _output_layer(model)
    return weight_bytes(model) - (_unique_bytes([*_tables(model), *output]) - _unique_bytes(output))


def _tables(model: Any) -> list[torch.Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]


def _output_layer(model: Any) -> list[torch.Tensor]:
    layer = model.get_output_embeddings()
    return [] if layer is None else [*layer.parameters(), *layer.buffers()]


def _unique_bytes(tensors: list[torch.Tensor]) -> int:
    """A view of a storage already counted (tied embeddings) adds nothing."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        pointer = tensor.untyped_storage().data_ptr()
        storages[pointer] = max(size, storages.get(pointer, 0))
    return sum(storages.values())


def _device_peak(step: Callable[[], object], device: str) -> MemoryPeak:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return MemoryPeak(peak, peak - before, {"measured": "torch.cuda.max_memory_allocated"})


def _process_peak(step: Callable[[], object]) -> MemoryPeak:
    """Linux can forget the old high-water mark of a process; elsewhere it is of its whole life."""
    if sys.platform == "linux" and _forget_high_water_mark():
        before = psutil.Process().memory_info().rss
        step()
        peak = max(_high_water_mark(), before)
        return MemoryPeak(
            peak,
            peak - before,
            {"measured": "resident memory of the process (VmHWM), Python and libraries included"},
        )
    step()
    return MemoryPeak(
        _lifetime_peak(),
        None,
        {"measured": "highest resident memory in the life of the process, loading included"},
    )


def _forget_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return _high_water_mark() > 0


def _high_water_mark() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _lifetime_peak() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # bytes on macOS, KiB on Linux
