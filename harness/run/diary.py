"""The diary of a sweep: what its processes leave in RESULTS/runs/NAME for others to read.

    sweep.json           its name, its cells and their stages to run
    jobs.json            configurations of the cells, for workers (harness.run.worker)
    begun/NUMBER.json    seconds of the stages that workers have finished of a cell
    settled/NUMBER.json  what became of a cell
    claims/NUMBER.lock   which worker has a cell (harness.records.leases)
    runners/WHO.json     what a process does now; WHO.lock says whether it lives
    NUMBER-NAME.log      what libraries said in a cell's process

Everything here may be lost without losing a figure: records are in the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.records.leases import Lease
from harness.records.store import disk_errors, file_name, write_atomically
from harness.run.events import (
    Advanced,
    Event,
    Failed,
    Finished,
    Queued,
    Started,
    Waiting,
)
from harness.run.recording import now

SECONDS_BETWEEN = 1.0  # notes of progress
# Types of failures after which it is asked whether the disk can still be written.
DISK_TROUBLE = ("StoreError", "ArtifactError", "OSError")


STARTER = "starter"  # the process that started workers and follows them


@dataclass(frozen=True)
class Job:
    """A cell of a sweep: its place among the sweep's cells from 1, its name, its stages to run."""

    number: int
    name: str
    todo: tuple[str, ...]


@dataclass
class Settled:
    """What became of a cell.

    finished  seconds by stage.
    cached    stages that another sweep had finished, before this one or meanwhile.
    failures  (stage, type, message).
    records   paths of the stages' records below the results folder.
    """

    finished: dict[str, float] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    records: dict[str, str] = field(default_factory=dict)
    runner: str = ""

    def hear(self, event: Event) -> None:
        """Add a stage that ended."""
        if isinstance(event, Finished) and event.cached:
            if event.stage not in self.finished:  # by a worker that left the cell, or was killed
                self.cached.append(event.stage)
        elif isinstance(event, Finished):
            self.finished[event.stage] = event.seconds
        elif isinstance(event, Failed):
            self.failures.append((event.stage, event.type, event.message))


@dataclass(frozen=True)
class Doing:
    """What a process does now.

    cell    number and name; None between cells.
    since   of the stage, or of what it waits for: seconds since 1970 on its machine.
    waits   whom or what for; "" if it works.
    born    seconds from its interpreter's start until it was ready for cells.
    cells   that it has settled.
    """

    cell: tuple[int, str] | None = None
    stage: str = ""
    since: float = 0.0
    done: int = 0
    total: int | None = None
    what: str = ""
    waits: str = ""
    born: float | None = None
    cells: int = 0


class Diary:
    """The folder of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, name: str, jobs: Iterable[Job]) -> None:
        """Write what the sweep is going to do. Raises StoreError."""
        said = {"name": name, "started_at": now(), "cells": [asdict(job) for job in jobs]}
        write_atomically(self.folder / "sweep.json", json.dumps(said))

    def sweep(self) -> tuple[str, str, list[Job]] | None:
        """Name, start and cells of the sweep; None if this folder has none that can be read."""
        try:
            said = json.loads((self.folder / "sweep.json").read_text(encoding="utf-8"))
            jobs = [
                Job(each["number"], each["name"], tuple(each["todo"])) for each in said["cells"]
            ]
            return str(said["name"]), str(said["started_at"]), jobs
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, number: int, settled: Settled) -> None:
        """Write what is done of a cell, for the next worker that takes it. Raises StoreError."""
        write_atomically(self._begun(number), json.dumps(settled.finished))

    def begun(self, number: int, runner: str) -> Settled:
        """What workers have done of a cell, as `runner` goes on with it."""
        found = Settled(runner=runner)
        with contextlib.suppress(OSError, ValueError):
            found.finished = json.loads(self._begun(number).read_text(encoding="utf-8"))
        return found

    def settle(self, number: int, settled: Settled) -> None:
        """Write what became of a cell. Raises StoreError."""
        write_atomically(self._settled(number), json.dumps(asdict(settled)))

    def has(self, number: int) -> bool:
        """Whether a cell is settled."""
        return self._settled(number).exists()

    def settled(self, known: Mapping[int, Settled] | None = None) -> dict[int, Settled]:
        """What became of the cells, by number; those in `known` are not read again."""
        found = dict(known or {})
        for path in sorted((self.folder / "settled").glob("*.json")):
            number = int(path.stem)
            if number not in found:
                with contextlib.suppress(OSError, ValueError, TypeError):
                    said = json.loads(path.read_text(encoding="utf-8"))
                    said["failures"] = [tuple(each) for each in said["failures"]]
                    found[number] = Settled(**said)
        return found

    def log(self, job: Job) -> Path:
        """Where the output of libraries goes in a cell's process."""
        return self.folder / f"{job.number:03d}-{file_name(job.name)[:80]}.log"

    def claim(self, number: int) -> Lease:
        """The lock of a cell among the workers of this sweep."""
        file = self.folder / "claims" / f"{number}.lock"
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        return Lease(file)

    def runners(self) -> dict[str, tuple[Doing, Lease]]:
        """What each process does or last did, and the lease that says whether it lives."""
        found = {}
        for path in sorted((self.folder / "runners").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                said = json.loads(path.read_text(encoding="utf-8"))
                said["cell"] = said["cell"] and tuple(said["cell"])
                found[path.stem] = (Doing(**said), Lease(path.with_suffix(".lock")))
        return found

    def _begun(self, number: int) -> Path:
        return self.folder / "begun" / f"{number}.json"

    def _settled(self, number: int) -> Path:
        return self.folder / "settled" / f"{number}.json"


class Runner:
    """A process that runs cells of a sweep: it says what it does. To be used as a context manager.

    What cannot be noted is not: no figure depends on it.
    """

    def __init__(self, diary: Diary, who: str, born: float | None = None) -> None:
        self._file = diary.folder / "runners" / f"{who}.json"
        self._lease = Lease(self._file.with_suffix(".lock"))
        self.who = who
        self._doing = Doing(born=born)
        self._last = 0.0

    def __enter__(self) -> Runner:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._lease.wait()
        self._note()
        return self

    def __exit__(self, *_: object) -> None:
        self._doing = Doing(born=self._doing.born, cells=self._doing.cells)
        self._note()
        self._lease.release()

    def begins(self, number: int, name: str) -> None:
        """A cell begins."""
        born, cells = self._doing.born, self._doing.cells
        self._doing = Doing((number, name), since=time.time(), born=born, cells=cells)
        self._note()

    def ends(self, settled: bool = True) -> None:
        """The cell is settled, or left to another sweep."""
        self._doing = Doing(born=self._doing.born, cells=self._doing.cells + settled)
        self._note()

    def hear(self, event: Event) -> None:
        """Note an event of the cell, progress once in a while."""
        if isinstance(event, Started):
            self._say(stage=event.stage, since=time.time())
        elif isinstance(event, Waiting):
            self._say(stage=self._doing.stage, waits=event.who, since=time.time())
        elif isinstance(event, Queued):
            self._say(stage=event.stage, waits=event.device, since=time.time())
        elif isinstance(event, Advanced) and time.monotonic() - self._last >= SECONDS_BETWEEN:
            old = self._doing
            step = {"done": event.done, "total": event.total, "what": event.what}
            self._say(stage=event.stage, since=old.since, **step)

    def _say(self, **now: Any) -> None:
        old = self._doing
        self._doing = Doing(old.cell, born=old.born, cells=old.cells, **now)
        self._note()

    def _note(self) -> None:
        self._last = time.monotonic()
        beside = self._file.with_name(f".{self._file.name}.new")
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps(asdict(self._doing)), encoding="utf-8")
            os.replace(beside, self._file)


def records_of(cell: Any) -> dict[str, str]:
    """The paths of a cell's records that exist, below its results folder."""
    keys, root = cell.keys, cell.store.root
    paths = {
        stage: cell.store.record_path(cell.identity, keys.cell, stage, key)
        for stage, key in keys.stages.items()
    }
    return {s: str(path.relative_to(root)) for s, path in paths.items() if path.exists()}
