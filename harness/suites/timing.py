"""Clocks, and statistics of timings: medians, percentiles, paired ratios."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from quant.spread.connect import devices_of

T = TypeVar("T")

P99_SAMPLES = 100  # fewest observations for a 99th percentile


class Stopwatch(Protocol):
    """Runs a step and returns (result, milliseconds)."""

    def __call__(self, step: Callable[[], T]) -> tuple[T, float]: ...


def host_stopwatch(clock: Callable[[], int] = time.perf_counter_ns) -> Stopwatch:
    """A stopwatch of wall time for the CPU; `clock` returns nanoseconds."""

    def measure(step: Callable[[], T]) -> tuple[T, float]:
        start = clock()
        result = step()
        return result, (clock() - start) / 1e6

    return measure


def device_stopwatch(device: str) -> Stopwatch:
    """A stopwatch with two CUDA events around a step.

    The device is idle before and after, as in generation that reads every token, so the interval
    includes the launches.
    """

    def measure(step: Callable[[], T]) -> tuple[T, float]:
        with torch.cuda.device(device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            result = step()
            end.record()
            end.synchronize()
        return result, start.elapsed_time(end)

    return measure


def synchronized(
    devices: Sequence[str],
    clock: Callable[[], int] = time.perf_counter_ns,
    wait: Callable[[str], object] | None = None,
) -> Callable[[], int]:
    """A clock that waits for all work on every device before it is read.

    `clock` returns nanoseconds; it and `wait` are for tests.
    """
    wait = wait or torch.cuda.synchronize

    def read() -> int:
        for device in devices:
            wait(device)
        return clock()

    return read


def stopwatch_of(device: str, more: Sequence[str] = ()) -> Stopwatch:
    """The clock of a device.

    more  further devices: no event of one spans the work of another, so all of them are waited for
          before and after a step, and it is the host's clock that tells its time.
    """
    if more:
        return host_stopwatch(synchronized((device, *more)))
    return device_stopwatch(device) if on_cuda(device) else host_stopwatch()


def on_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def conditions(device: str, dtype: str, devices: Sequence[str] = ()) -> dict[str, str]:
    """Conditions of a timing, for the notes of a metric.

    devices  all that were waited for, if several.
    """
    found = {"dtype": dtype, "device": device}
    if devices:
        found["clock"] = f"perf_counter_ns, {len(devices)} devices waited for"
        return found | ({"gpu": torch.cuda.get_device_name(device)} if on_cuda(device) else {})
    if on_cuda(device):
        return found | {"clock": "CUDA events", "gpu": torch.cuda.get_device_name()}
    return found | {"clock": "perf_counter_ns", "threads": str(torch.get_num_threads())}


def place_notes(model: object) -> dict[str, str]:
    """Notes of a timing of a model that is spread over several devices; none for one."""
    devices = devices_of(model)
    if not devices:
        return {}
    notes = {"devices": str(len(devices))}
    if on_cuda(devices[0]):
        gpus = Counter(map(torch.cuda.get_device_name, devices))
        notes["gpu"] = ", ".join(f"{count} × {name}" for name, count in gpus.items())
    return notes


def summarise(values: list[float]) -> tuple[float, dict[str, float]]:
    """The median, and the percentiles p10, p50, p90 (p99 from 100 values on), interpolated."""
    levels = {"p10": 0.10, "p50": 0.50, "p90": 0.90}
    if len(values) >= P99_SAMPLES:
        levels["p99"] = 0.99
    data = torch.tensor(values, dtype=torch.float64)
    quantiles = {name: torch.quantile(data, level).item() for name, level in levels.items()}
    return quantiles["p50"], quantiles


def paired_ratio(numerator: list[float], denominator: list[float]) -> list[float]:
    """Ratios by repeat, so that a disturbance of both in one repeat cancels."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Context: no garbage collection, which would distort the time of a 10 ms step."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
