"""`bitsweep status`: what the sweeps of a results folder do now, from any shell or node.

Only read, from their diaries (harness.run.diary); nothing is asked of the processes themselves.
"""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from harness.errors import ConfigError
from harness.records.asked import require_folder
from harness.run.diary import STARTER, Diary, Doing, Job, Settled
from harness.run.screen import duration, open_console

RUNNING, FINISHED, ENDED, KILLED = "running", "finished", "interrupted", "killed"


@dataclass(frozen=True)
class Process:
    """One process of a sweep.

    state  RUNNING, ENDED, or KILLED: it was not able to say that it ends.
    owner  who it is; only of one that runs.
    """

    who: str
    doing: Doing
    state: str
    owner: str


@dataclass(frozen=True)
class Sweep:
    """A sweep as it stands."""

    folder: Path
    name: str
    started_at: str
    jobs: list[Job]
    settled: dict[int, Settled]
    processes: list[Process]

    @property
    def state(self) -> str:
        """RUNNING if a process lives, FINISHED if every cell is settled, else how it ended."""
        states = {each.state for each in self.processes}
        if RUNNING in states:
            return RUNNING
        if all(job.number in self.settled or not job.todo for job in self.jobs):
            return FINISHED
        return KILLED if KILLED in states else ENDED

    @property
    def running(self) -> list[Process]:
        """The processes that run a cell now."""
        return [e for e in self.processes if e.state == RUNNING and e.doing.cell is not None]

    def seconds_left(self) -> float | None:
        """About how long it still takes: its remaining stages at the mean of those of that name.

        None before any stage has finished.
        """
        took: dict[str, list[float]] = defaultdict(list)
        for each in self.settled.values():
            for stage, seconds in each.finished.items():
                took[stage].append(seconds)
        if not took or not self.running:
            return None
        usual = fmean(fmean(each) for each in took.values())
        left = [s for job in self.jobs if job.number not in self.settled for s in job.todo]
        total = sum(fmean(took[stage]) if stage in took else usual for stage in left)
        return total / len(self.running)


def sweeps(results: Path) -> list[Sweep]:
    """The sweeps of a results folder that left a diary, oldest first."""
    found = []
    for folder in sorted((results / "runs").glob("*")):
        diary = Diary(folder)
        said = diary.sweep()
        if said is not None:
            processes = []
            for who, (doing, lease) in diary.runners().items():
                ended = ENDED if lease.given_back() else KILLED
                state = RUNNING if lease.lives() else ended
                owner = lease.owner().partition(",")[0] if state != ENDED else ""
                processes.append(Process(who, doing, state, owner))
            found.append(Sweep(folder, *said, diary.settled(), processes))
    return found


def status(results: Path, everything: bool = False) -> None:
    """Print the sweeps that run and the last one; all of them with `everything`."""
    require_folder(results)
    every = sweeps(results)
    if not every:
        raise ConfigError(
            f"{results} holds no sweep that says what it does: name the results folder of a run."
        )
    shown = [s for s in every if everything or s.state == RUNNING or s is every[-1]]
    screen = open_console()
    for sweep in shown:
        for line in lines_of(sweep, time.time()):
            screen.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(shown) < len(every):
        rest = len(every) - len(shown)
        place = shlex.quote(str(results))
        screen.print(
            f"{rest} earlier: `bitsweep status {place} --all`",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def lines_of(sweep: Sweep, now: float) -> list[str]:
    """A sweep in lines: the whole, running cells, failed cells with their causes.

    now  seconds since 1970.
    """
    to_run = [job for job in sweep.jobs if job.todo]
    done = len(sweep.jobs) - len(to_run) + len(sweep.settled)
    failed = sum(bool(each.failures) for each in sweep.settled.values())
    parts = [f"{done} of {len(sweep.jobs)} cells done", f"{failed} of them failed" * bool(failed)]
    if sweep.running:
        parts.append(f"{len(sweep.running)} running")
    left = sweep.seconds_left()
    if left is not None and sweep.state == RUNNING:
        parts.append(f"about {duration(left)} left")
    said = ", ".join(filter(None, parts))
    lines = [f"{sweep.name}: {sweep.state}, {said} (begun {sweep.started_at}, {sweep.folder.name})"]
    if sweep.state in (ENDED, KILLED):
        lines.append("  what is done is kept: run its command again to continue")
    if sweep.state == RUNNING and not sweep.running:
        lines.append("  no worker runs a cell: they start, wait in a queue, or are about to end")
    lines += [f"  {_running(each, now)}" for each in sweep.running]
    lines += [f"  {_killed(each, sweep.state)}" for each in sweep.processes if _matters(each)]
    lines += _failures(sweep.jobs, sweep.settled)
    return lines


def _running(process: Process, now: float) -> str:
    doing = process.doing
    assert doing.cell is not None
    since = max(0.0, now - doing.since)  # clocks of two machines may differ
    what = f"{doing.cell[1]} {doing.stage or 'starts'}"
    if doing.waits:
        what += f", waits for {doing.waits}"
    elif doing.total:
        what += f" {doing.done} of {doing.total} ({doing.what})"
    said = f"{process.who} ({process.owner}): {what}, for {duration(since)}"
    if doing.total and doing.done and not doing.waits:
        said += f", {duration(since / doing.done * (doing.total - doing.done))} left"
    return said


def _matters(process: Process) -> bool:
    return process.state == KILLED and process.who != STARTER


def _killed(process: Process, state: str) -> str:
    cell = process.doing.cell
    at = "" if cell is None else f" at {cell[1]} {process.doing.stage}".rstrip()
    then = ", with which another goes on" if state == RUNNING and cell is not None else ""
    return f"{process.who} ({process.owner}) was killed{at}{then}"


def _failures(jobs: Sequence[Job], settled: dict[int, Settled]) -> list[str]:
    return [
        f"  {job.name}: {stage} failed ({kind}): {message}"
        for job in jobs
        if job.number in settled
        for stage, kind, message in settled[job.number].failures
    ]
