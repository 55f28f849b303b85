"""Measure the peak memory of a step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


# High-water marks seen by the running measurements, outermost first. An inner measurement resets
# the system's mark, which the outer one would otherwise miss.
_seen: list[int] = []


def measure_peak(step: Callable[[], object], devices: Sequence[str]) -> MemoryPeak:
    """Run `step` and measure its peak memory: of the devices on CUDA, else of the process.

    Of several devices the peaks are added; a note has each. Measurements may be nested; an outer
    one includes the peaks of the inner ones.
    """
    if torch.device(devices[0]).type == "cuda":
        return _device_peak(step, devices)
    return _process_peak(step)


def _watch(step: Callable[[], object], mark: Callable[[], int]) -> int:
    """Run `step` and return the highest mark, including those of nested measurements."""
    _seen.append(0)
    try:
        step()
    finally:
        highest = max(_seen.pop(), mark())
        if _seen:
            _seen[-1] = max(_seen[-1], highest)
    return highest


def _note(mark: int) -> None:
    """Keep a mark that is about to be reset, for the enclosing measurement."""
    if _seen:
        _seen[-1] = max(_seen[-1], mark)


def _device_peak(step: Callable[[], object], devices: Sequence[str]) -> MemoryPeak:
    def peaks() -> list[int]:
        for device in devices:
            torch.cuda.synchronize(device)
        return [int(torch.cuda.max_memory_allocated(device)) for device in devices]

    _note(sum(peaks()))
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    before = sum(torch.cuda.memory_allocated(device) for device in devices)
    peak = _watch(step, lambda: sum(peaks()))
    measured = "torch.cuda.max_memory_allocated"
    if len(devices) > 1:
        each = ", ".join(f"{d} {n / 1e9:.2f} GB" for d, n in zip(devices, peaks(), strict=True))
        measured = f"{measured} of {len(devices)} devices, added ({each})"
    return MemoryPeak(peak, peak - before, {"measured": measured})


def _process_peak(step: Callable[[], object]) -> MemoryPeak:
    """Linux can reset the high-water mark of a process; elsewhere it covers its whole life."""
    if sys.platform == "linux" and _forget_high_water_mark():
        before = psutil.Process().memory_info().rss
        peak = max(_watch(step, _high_water_mark), before)
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
    _note(_high_water_mark())
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
