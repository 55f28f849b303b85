"""Run every cell in a fresh process, so that memory figures are its own and a crash costs one cell.

Processes are forked from a server that has imported the heavy libraries (but has run nothing and
touched no GPU), so a cell starts in a few milliseconds. If the process of a cell dies (out of
memory, a crash in a kernel) or exceeds its time limit, its current stage is recorded as failed with
the likely cause, and a new process runs the other stages of the cell.
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
    Queued,
    Resumed,
    Started,
    Waiting,
)
from harness.run.recording import Timing, failed_record, now
from quant.parts import Part

PRELOAD = ["harness.run.preload", "harness.run.stage"]  # the first sets the environment
WARM = "harness.run.warm"  # last: it freezes what the others imported
# Imports of the quantization; a suite lists its own.
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
    signal.SIGABRT: "native code aborted: see the log",
}


def prepare(plans: Sequence[CellPlan]) -> None:
    """Choose what the fork server imports: built-in parts, and libraries of the stages to run.

    Only the call before the first cell has an effect. A cell imports anything else itself. User
    modules are never imported by the server, because their import may have side effects.
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


def warm_up(meanwhile: Callable[[], object] = lambda: None) -> None:
    """Start the fork server and wait until it has imported what `prepare` chose.

    meanwhile  is called in a thread, where no interrupt can cut its imports in two, and is done at
               the return; its errors are ignored.
    """

    def work() -> None:
        with contextlib.suppress(Exception):
            meanwhile()

    beside = threading.Thread(target=work, daemon=True)
    with signals.deferred():
        beside.start()
    process = context().Process(target=int, name="bitsweep-warm-up")
    _start(process)
    process.join()
    beside.join()


@lru_cache(maxsize=1)
def context() -> Any:
    """The multiprocessing context that all cells start from."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    # torch.cuda.is_available would initialize CUDA, which breaks it after a fork; NVML does not.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Where another process holds a core, the system leaves both threads of a pair on the other one,
    # and each parallel region waits for as long as libgomp spins: about 55 ns a count, so 1.1 ms at
    # 20000 (a layer of 576 x 1536: 1.2 ms instead of 0.11) and 0.1 ms here. No spinning at all
    # (OMP_WAIT_POLICY=PASSIVE) makes decoding 2 to 4 times slower on a quiet machine: 0.1 ms
    # outlasts what Python does between two layers. A user's own setting stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload([*PRELOAD, WARM])
    return chosen


def run_in_process(cell: ResolvedCell, listen: Listener, log: Path) -> None:
    """Run a cell in processes of its own until each of its stages is finished or failed.

    Output of libraries goes to the file `log`. On an interrupt, stops the process and raises
    KeyboardInterrupt. Raises StoreError if a failure cannot be recorded.
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
    """The time left to a cell, in seconds; waiting for others does not count."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._since = seconds, time.monotonic()
        self._waiting = False

    def left(self) -> float | None:
        """Seconds left, at least 0; None without a limit or while the cell waits."""
        if self._seconds is None or self._waiting:
            return None
        return max(0.0, self._seconds - (time.monotonic() - self._since))

    def hear(self, event: Event) -> None:
        """Stop the clock at Waiting or Queued, and start it again at the next event."""
        if isinstance(event, Waiting | Queued):
            if not self._waiting:
                self._seconds, self._waiting = self.left(), True
        elif self._waiting:
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
        """Pass on events until the process ends; return the failure if it was killed."""
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
        """Kill the process if it still runs; files are written so that a kill damages none."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._events.close()

    def seconds_in_stage(self) -> float:
        return time.monotonic() - self._since

    def _drain(self, listen: Listener) -> bool:
        """Pass on the events that have arrived; return False at the end of the stream."""
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
    """Context: hide the file of `__main__`, so that a new process does not import it.

    Importing the user's script would start its sweep again, and a cell does not need it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start(process: Any) -> None:
    """Start a process; an interrupt meanwhile ends the process and a fork server that is starting.

    The server imports libraries for seconds before it answers. A thread waits for it, so that an
    interrupt can end the server at once and without its traceback.
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
    try:
        # An interrupt inside Thread.start would leave a thread that nobody waits for: it dies with
        # this process, perhaps between the fork and what the forked process is to read.
        with signals.deferred():
            thread.start()
        thread.join()
    except KeyboardInterrupt:
        from multiprocessing import forkserver  # does not exist on all platforms

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
    """Entry point of a cell's process: redirect output, watch the parent, run the stages.

    parts  the modules that the pickled cell refers to: modules in a user's folder cannot be
           imported by name alone, so they are loaded before unpickling.
    """
    signals.ignore()  # the parent handles them
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
        # A quantization sets this for its process; every cell does, so that timings compare.
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
    os._exit(status)  # everything is saved, and some libraries hang at shutdown


def _sender(events: Connection, every: float = 0.1) -> Callable[[Event], None]:
    """A function that sends events; progress events at most once per `every` seconds."""
    last = 0.0

    def send(event: Event) -> None:
        nonlocal last
        if isinstance(event, Waiting | Queued | Started | Planned | Resumed | Finished | Failed):
            events.send(event)
        elif time.monotonic() - last >= every:
            last = time.monotonic()
            events.send(event)

    return send


def _end_with_parent(events: Connection) -> None:
    """Exit when the parent is gone. It sends nothing, so only its end ends the read."""
    with contextlib.suppress(EOFError, OSError):
        events.recv()
    os._exit(1)


def _redirect_output(log: str) -> None:
    """Redirect stdout and stderr of this process and its libraries to the log file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _bars_without_semaphores() -> None:
    """Give tqdm a thread lock: its default is a named semaphore, which would leak at exit."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
