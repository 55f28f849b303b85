"""Distribute work over devices, one ordered task queue each; results equal those of one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import torch

T = TypeVar("T")


def visible_devices(device: torch.device | str) -> tuple[torch.device, ...]:
    """Return the devices over which work for `device` may be distributed, the home device first.

    "cuda" means every visible GPU; "cuda:1" and "cpu" mean that device only.
    """
    home = torch.device(device)
    if home.type != "cuda" or home.index is not None:
        return (home,)
    return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def assign(costs: Sequence[float], workers: int, home: float = 0.0) -> list[int]:
    """Return the worker of each task: largest task first, always to the least loaded worker.

    home is work that worker 0 has anyway. Ties go to the lower number, so that the assignment
    depends only on the arguments.
    """
    load = [home] + [0.0] * (workers - 1)
    chosen = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda task: (-costs[task], task)):
        worker = load.index(min(load))
        chosen[task] = worker
        load[worker] += costs[task]
    return chosen


@dataclass(frozen=True)
class Workplace:
    """Where a quantization runs; none of these settings changes a bit of the result.

    devices      devices over which Hessians and solves are distributed; blocks run on the first.
                 None means the device of the model.
    activations  where calibration activations are stored between blocks: "cuda", "cpu" or "disk".
    folder       directory for activations on disk.
    results      directory in which quantize_model keeps finished weights until their last use; None
                 keeps them in memory, packed.
    """

    devices: tuple[torch.device, ...] | None = None
    activations: str = "cpu"
    folder: Path | None = None
    results: Path | None = None


class DeviceWorkers:
    """One worker per device; each runs its tasks in the order of submission.

    Worker 0 runs tasks immediately in the caller's thread, on the home device. As a context manager
    it waits for all tasks on exit.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.devices = tuple(devices)
        self._pools = [ThreadPoolExecutor(1, f"worker-{d}") for d in self.devices[1:]]
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def __len__(self) -> int:
        return len(self.devices)

    def run(self, worker: int, task: Callable[[], T]) -> Future[T]:
        """Start a task; worker 0 finishes it, or raises its error, before returning."""
        if worker == 0:
            future: Future[T] = Future()
            future.set_result(self._on(0, task))
            return future
        return self._pools[worker - 1].submit(self._on, worker, task)

    def send(self, worker: int, task: Callable[[], None]) -> None:
        """Start a task without a result; `settle` waits for it and raises its error."""
        try:
            self._pending.append(self.run(worker, task))
        except Exception as error:
            failed: Future[None] = Future()
            failed.set_exception(error)
            self._pending.append(failed)

    def settle(self) -> None:
        """Wait for everything that was sent; raise the first error in the order of sending."""
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def _on(self, worker: int, task: Callable[[], T]) -> T:
        device = self.devices[worker]
        here: AbstractContextManager[object] = nullcontext()
        if device.type == "cuda":
            here = torch.cuda.device(device)
        with here, torch.no_grad():  # gradient mode is per thread
            return task()
