"""Work spread over devices, an ordered queue of tasks for each: the same results as on one."""

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
    """The devices that work for `device` may be spread over, the home device first.

    "cuda" means every visible GPU; "cuda:1" and "cpu" mean that one alone.
    """
    home = torch.device(device)
    if home.type != "cuda" or home.index is not None:
        return (home,)
    return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))


def assign(costs: Sequence[float], workers: int, home: float = 0.0) -> list[int]:
    """The worker of each task: the largest task first, always to the worker with the least work.

    home is the work that worker 0 has anyway. Equal choices go to the lower number, so that the
    assignment depends on the numbers alone.
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
    """Where the work is done. None of it changes a bit of the result.

    devices      over which Hessians and solves are spread; the first is where blocks run. None:
                 the device of the model.
    activations  where calibration activations wait between blocks: "cuda", "cpu" or "disk".
    folder       for activations on disk.
    """

    devices: tuple[torch.device, ...] | None = None
    activations: str = "cpu"
    folder: Path | None = None


class DeviceWorkers:
    """One worker a device; the tasks of a worker run in the order in which they were given.

    Worker 0 is the caller's own: its tasks run at once, in the caller's thread, on the home device.
    A context manager: leaving it waits for them.
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
        """Start a task; on worker 0 it is finished on return, and its error raised at once."""
        if worker == 0:
            future: Future[T] = Future()
            future.set_result(self._on(0, task))
            return future
        return self._pools[worker - 1].submit(self._on, worker, task)

    def send(self, worker: int, task: Callable[[], None]) -> None:
        """As `run`, for tasks that `settle` waits for and whose errors it raises."""
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
        with here, torch.no_grad():  # gradient mode belongs to a thread
            return task()
