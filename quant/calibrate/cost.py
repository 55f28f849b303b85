"""Measure the seconds and peak memory of the stages of a quantization."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch

SAMPLE_SECONDS = 0.01
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage, summed over all of its turns.

    seconds     wall time of the run's thread; stages do not overlap, so their sum is the run's wall
                time.
    peak_bytes  highest memory use while the stage ran, including the model and a background thread;
                None if the platform reports none.
    memory      what peak_bytes is: "cuda allocator peak", "resident set, sampled every 10 ms" or
                "resident set, high-water mark of the process" (which earlier stages, or the process
                before the run, may have set).
    background  seconds that a background thread worked for the stage, during other stages or while
                the run waited for it; only the waiting is in `seconds`.
    """

    name: str
    seconds: float
    peak_bytes: int | None
    memory: str
    background: float = 0.0


class StageMeter:
    """Context manager around a run that measures its named stages.

    On a CUDA device memory is the allocator's peak. On the CPU a thread samples the resident set of
    the process, and every stage reads it at its begin and end. Stages do not nest. The resident set
    of the whole run is sampled on every device (host_peak_bytes).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] = {}
        self._peak: dict[str, int] = {}
        self._background: dict[str, float] = {}
        self._reported: dict[str, StageCost] = {}
        self._host_peak: int | None = None
        self._stage: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> StageMeter:
        if _STATM.exists():
            self._thread = threading.Thread(target=self._sample, daemon=True, name="stage-meter")
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time and memory of the body to stage `name`."""
        if self._stage is not None:
            raise RuntimeError(f"stage {name!r} cannot begin inside stage {self._stage!r}.")
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._stage = name
        self._note(name)
        begin = time.perf_counter()
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(self._device)
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin
            self._note(name)
            self._stage = None

    def costs(self) -> list[StageCost]:
        """Return the stages in the order in which they first began."""
        source = _memory_source(self._device)
        return [
            StageCost(name, seconds, self._peak.get(name), source, self._background.get(name, 0.0))
            for name, seconds in self._seconds.items()
        ]

    @property
    def host_peak_bytes(self) -> int | None:
        """Return the highest resident set of this process so far; None if unknown."""
        return self._host_peak if _STATM.exists() else _high_water_bytes()

    def since_last(self) -> list[StageCost]:
        """Return the costs added since the last call; peaks are those of the whole run."""
        costs, reported = self.costs(), self._reported
        self._reported = {cost.name: cost for cost in costs}
        return [
            _difference(cost, reported[cost.name]) if cost.name in reported else cost
            for cost in costs
        ]

    def add_background(self, stage: str, seconds: float) -> None:
        """Add background seconds to a stage; call it from the thread of the stages."""
        self._background[stage] = self._background.get(stage, 0.0) + seconds

    def add(self, costs: Iterable[StageCost]) -> None:
        """Add the costs of an earlier run; `since_last` does not report them again."""
        for cost in costs:
            self._seconds[cost.name] = self._seconds.get(cost.name, 0.0) + cost.seconds
            self.add_background(cost.name, cost.background)
            if cost.peak_bytes is not None:
                self._peak[cost.name] = max(self._peak.get(cost.name, 0), cost.peak_bytes)
        self._reported = {cost.name: cost for cost in self.costs()}

    def _note(self, stage: str) -> None:
        bytes_now = _peak_now(self._device)
        if bytes_now is not None:
            self._peak[stage] = max(self._peak.get(stage, 0), bytes_now)

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._host_peak = max(self._host_peak or 0, _resident_bytes())
            stage = self._stage
            if stage is not None and self._device.type != "cuda":
                self._note(stage)


def _difference(cost: StageCost, reported: StageCost) -> StageCost:
    return replace(
        cost,
        seconds=cost.seconds - reported.seconds,
        background=cost.background - reported.background,
    )


def _peak_now(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATM.exists():
        return _resident_bytes()
    return _high_water_bytes()


def _memory_source(device: torch.device) -> str:
    if device.type == "cuda":
        return "cuda allocator peak"
    if _STATM.exists():
        return f"resident set, sampled every {SAMPLE_SECONDS * 1000:.0f} ms"
    if _high_water_bytes() is not None:
        return "resident set, high-water mark of the process"
    return "not measured on this platform"


def _resident_bytes() -> int:
    import resource

    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def _high_water_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no getrusage
        return None
    # macOS counts ru_maxrss in bytes; Linux, which counts KiB, is measured through /proc instead.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
