"""A fresh process for every cell: honest memory figures, and a crash costs one cell.

Processes are forked from a server that has imported the heavy libraries once (but has run nothing
and touched no GPU), so a cell starts in a few milliseconds. A cell that kills its process (out of
memory, a crash in a kernel) or runs out of time is stopped, the stage it was in is recorded as
failed with the likely cause, and a new process goes on with the cell's other stages.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.cell.cells import ResolvedCell
from harness.cell.plan import CellPlan, plan_cell
from harness.records.record import QUANTIZATION, Failure
from harness.run import signals
from harness.run.events import (
    Broken,
    Event,
    Failed,
    Finished,
    Listener,
    Planned,
    Resumed,
    Started,
    Waiting,
)
from harness.run.recording import Timing, failed_record, now
from quant.parts import Part

PRELOAD = ["harness.run.preload", "harness.run.stage"]  # the first sets the environment
WARM = "harness.run.warm"  # after all others, which it shares with the cells
# What quantizing needs besides; a suite says itself what it needs.
QUANTIZING = [
    "quant.checkpoint.make",
    "quant.checkpoint.source",
    "quant.checkpoint.unfinished",
    "quant.memory.plan",
    "quant.memory.shapes",
]
LIKELY = {
    signal.SIGKILL: "most likely out of memory: use a smaller batch size or model, or more memory",
    signal.SIGSEGV: "a crash in native code: see the log, and report it with the log",
    signal.SIGBUS: "a file shrank or the disk is full: check the disk and run again",
    signal.SIGABRT: "native code gave up: see the log",
}


def prepare(plans: Sequence[CellPlan]) -> None:
    """Say what the server imports in advance: our parts, and libraries that stages to run need.

    Only the first call before the first cell counts; what is missing a cell imports itself, as it
    does the code of others, which may do more than define things.
    """
    names: dict[str, None] = {}
    for plan in plans:
        if plan.todo:
            ours = (part.module for part in plan.cell.choices.parts if part.sha256 is None)
            names |= dict.fromkeys(ours)
        for stage in plan.todo:
            needed = QUANTIZING
            if stage != QUANTIZATION:
                needed = list(plan.cell.measuring(stage).suite.preload)
            names |= dict.fromkeys(needed)
    if sys.platform != "win32":
        context().set_forkserver_preload([*PRELOAD, *names, WARM])


@lru_cache(maxsize=1)
def context() -> Any:
    """The multiprocessing context that all cells start from."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    # Asking CUDA whether it exists would make it unusable after the fork; NVML may be asked.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # OpenMP threads that spin for long while they wait make a busy machine tens of times slower
    # (measured: 66 to 182 s for what takes 1.5 s alone). Not to spin at all
    # (OMP_WAIT_POLICY=PASSIVE) makes decoding 2 to 4 times slower; a short spin does not.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([*PRELOAD, WARM])
    return chosen


def run_in_process(cell: ResolvedCell, listen: Listener, log: Path) -> None:
    """Run a cell in processes of its own until each of its stages is finished or failed.

    What libraries print goes to the file `log`. Raises KeyboardInterrupt after having stopped the
    process when the user interrupts, StoreError when not even a failure can be recorded.
    """
    allowance = _Allowance(cell.choices.runtime.timeout_s)
    skip: frozenset[str] = frozenset()
    while True:
        process = _Process(cell, skip, log)
        try:
            failure = process.follow(listen, allowance)
        finally:
            process.stop()
        if failure is None:
            return
        timing = Timing(process.started_at, process.seconds_in_stage())
        cell.store.write(failed_record(cell, failure, timing))
        listen(Failed(failure.stage, failure.type, failure.message))
        skip |= process.tried | {failure.stage}
        if failure.stage == QUANTIZATION or failure.type == "Timeout":
            return
        if skip >= set(plan_cell(cell).todo):
            return


class _Allowance:
    """The seconds that a cell may still work; waiting for another process takes none of them."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._since = seconds, time.monotonic()
        self._waiting = False

    def left(self) -> float | None:
        """Seconds left, 0 or more; None without a limit, and while the cell waits."""
        if self._seconds is None or self._waiting:
            return None
        return max(0.0, self._seconds - (time.monotonic() - self._since))

    def hear(self, event: Event) -> None:
        """The clock stands from Waiting to the next event."""
        if isinstance(event, Waiting) and not self._waiting:
            self._seconds, self._waiting = self.left(), True
        elif self._waiting and not isinstance(event, Waiting):
            self._since, self._waiting = time.monotonic(), False


class _Process:
    """One attempt at a cell in a process of its own."""

    def __init__(self, cell: ResolvedCell, skip: frozenset[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._cell, self._log = cell, log
        self.stage: str | None = None
        self.tried: frozenset[str] = frozenset()
        self.started_at, self._since = now(), time.monotonic()
        self._broken: Broken | None = None
        self._events, theirs = context().Pipe()
        self._process = context().Process(
            target=_child,
            args=(theirs, cell.choices.parts, pickle.dumps(cell), skip, str(log)),
            name="bitsweep-cell",
        )
        try:
            _start(self._process)
        except BaseException:
            self.stop()
            raise
        finally:
            theirs.close()

    def follow(self, listen: Listener, allowance: _Allowance) -> Failure | None:
        """Pass events on until the process ends; what killed it, if something did."""
        sentinel = self._process.sentinel

        def hear(event: Event) -> None:
            allowance.hear(event)
            listen(event)

        while True:
            ready = wait([self._events, sentinel], allowance.left())
            if not ready:
                return self._failure("Timeout", self._timed_out())
            if not self._drain(hear) or sentinel in ready:
                self._process.join()
                return self._cause_of_death()

    def stop(self) -> None:
        """End the process if it still runs; it holds nothing that a kill could damage."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._events.close()

    def seconds_in_stage(self) -> float:
        return time.monotonic() - self._since

    def _drain(self, listen: Listener) -> bool:
        """Pass on what has arrived; False at the end of the stream."""
        try:
            while self._events.poll():
                self._note(self._events.recv(), listen)
        except (EOFError, ConnectionResetError):
            return False
        return True

    def _note(self, event: Event, listen: Listener) -> None:
        if isinstance(event, Broken):
            self._broken = event
            return
        if isinstance(event, Started):
            self.stage, self.started_at, self._since = event.stage, now(), time.monotonic()
        if isinstance(event, Started | Finished | Failed):
            self.tried |= {event.stage}
        listen(event)

    def _cause_of_death(self) -> Failure | None:
        code = self._process.exitcode
        if code == 0:
            return None
        if self._broken is not None:
            return self._failure(self._broken.type, self._broken.message)
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            why = LIKELY.get(signal.Signals(-code), "see the log")
            return self._failure(name, f"the process was ended by {name}, {why} ({self._log}).")
        return self._failure("ProcessError", f"the process ended with status {code}: {self._log}.")

    def _failure(self, kind: str, message: str) -> Failure:
        first = next(iter(plan_cell(self._cell).todo), QUANTIZATION)
        stage = self.stage or first
        return Failure(stage=stage, type=kind, message=message)

    def _timed_out(self) -> str:
        return (
            f"the cell ran longer than runtime.timeout_s={self._cell.choices.runtime.timeout_s} "
            "seconds and was stopped: give it more time and run the same command again; its "
            "finished stages are kept."
        )


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Inside, `__main__` is nothing that a new process would import.

    It would run the user's script again, which would run its sweep again; a cell needs nothing of
    it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(process: Any) -> None:
    """Start a process. An interrupt meanwhile leaves none behind, and no server in the making.

    The server imports libraries for seconds before it answers; whoever interrupts that would see
    its traceback, and wait. So another thread waits for it, and an interrupt ends the server.
    """
    trouble: list[BaseException] = []

    def start() -> None:
        if context().get_start_method() == "forkserver":
            # Starting it lets SIGINT and SIGTERM through again in the thread that does so.
            resource_tracker.ensure_running()
        signals.block()
        try:
            with _without_main():
                process.start()
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        from multiprocessing import forkserver  # where there is one

        server = getattr(forkserver._forkserver, "_forkserver_pid", None)
        if process.pid is None and server is not None:
            os.kill(server, signal.SIGKILL)
        thread.join()
        raise
    if trouble:
        raise trouble[0]


def _child(
    events: Connection, parts: Sequence[Part], pickled: bytes, skip: frozenset[str], log: str
) -> None:
    """The process of a cell: output to the log, ends with its parent, runs the stages.

    parts  the modules that the pickled cell refers to: those of a user's folder cannot be found by
           their names alone.
    """
    signals.ignore()  # they reach the parent, which decides
    _redirect_output(log)
    threading.Thread(target=_end_with_parent, args=(events,), daemon=True).start()
    try:
        from harness.run.stage import run_cell
        from quant.memory.heaps import keep_freed_memory

        for part in parts:
            part.import_module()
        cell: ResolvedCell = pickle.loads(pickled)
        _bars_without_semaphores()
        _set_threads(cell.choices.runtime.threads)
        # A quantization sets this for its process: so every cell does, to be measured alike.
        keep_freed_memory()
        run_cell(cell, _sender(events), skip)
        status = 0
    except Exception as error:
        traceback.print_exc()
        events.send(Broken(type(error).__name__, str(error)))
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # nothing is left to save, and some libraries hang while they shut down


def _sender(events: Connection, every: float = 0.1) -> Callable[[Event], None]:
    """Send events; of those that only move a progress bar at most ten a second."""
    last = 0.0

    def send(event: Event) -> None:
        nonlocal last
        if isinstance(event, Waiting | Started | Planned | Resumed | Finished | Failed):
            events.send(event)
        elif time.monotonic() - last >= every:
            last = time.monotonic()
            events.send(event)

    return send


def _end_with_parent(events: Connection) -> None:
    """The parent never sends anything, so this returns only when it is gone (kill -9 included)."""
    with contextlib.suppress(EOFError, OSError):
        events.recv()
    os._exit(1)


def _redirect_output(log: str) -> None:
    """Send what this process and its libraries print to the log file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _bars_without_semaphores() -> None:
    """Give tqdm a lock of this process: its usual one is a named semaphore, left behind at exit."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
