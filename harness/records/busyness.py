"""How busy others keep this machine: processor time, steal, run queue, quota, read from /proc.

A Watch reads twice or more; its Usage is what happened in between. `said_busy` is the rule for a
timing that others disturbed, `free_threads` for how many threads a stage should use. Where there is
no /proc, nothing is known, and everything here says so (None, NOT_KNOWN).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.records.record import Metric

NOT_KNOWN = "not known: no /proc/stat here"
SIZES = ("bytes", "bits", "weights")  # units of what does not depend on the machine's load
BUSY = "busy"  # the note of a metric that was measured while the machine was busy

# The rule for busy. Shares are of the time of all cores that this process may use.
OTHERS = 0.10  # processor time of other processes
STOLEN = 0.02  # time that a hypervisor gave to other machines
QUEUED = 0.50  # tasks of others that ran or waited, a core, on average of the readings
THROTTLED = 0.02  # time in which a quota held this process back, share of the clock

QUEUE_READINGS = 3  # fewer say nothing of an average
SHORTEST_S = 0.05  # of a window that decides: the kernel counts in hundredths of a second


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in seconds; None where the system does not tell.

    clock      of the wall.
    cores      that this process may use; fewer than whole ones with a quota.
    work       processor time of all processes on these cores; stolen: by a hypervisor.
    own        processor time of this process, all threads, and of its children that have ended.
    queued     tasks of others that run or wait now.
    waiting    time in which some task waited for a core (/proc/pressure/cpu).
    throttled  time in which the quota of the control group held it back.
    """

    clock: float
    cores: float
    work: float
    stolen: float
    own: float
    queued: int | None
    waiting: float | None
    throttled: float | None


@dataclass(frozen=True)
class Usage:
    """What happened between readings: cores' worth of others and of steal, and shares of the clock.

    seconds  of the window; error: cores' worth that the kernel's counting in steps may add.
    """

    seconds: float
    cores: float
    others: float
    stolen: float
    error: float
    queued: float | None
    waiting: float | None
    throttled: float | None
    readings: int

    def entries(self) -> dict[str, Any]:
        """For a record: figures to two decimals."""
        figures = {
            "seconds": self.seconds,
            "others": self.others,
            "stolen": self.stolen,
            "queued": self.queued,
            "waiting": self.waiting,
            "throttled": self.throttled,
        }
        return {name: None if value is None else round(value, 2) for name, value in figures.items()}


class System:
    """Reads the counters of this machine; `root` is for tests."""

    def __init__(self, root: Path = Path("/"), allowed: Collection[int] | None = None) -> None:
        self._stat, self._pressure = root / "proc/stat", root / "proc/pressure/cpu"
        self._tasks = root / "proc/self/task"
        self._groups = _groups(root)
        self._allowed = _allowed() if allowed is None else frozenset(allowed)

    def read(self) -> Reading | None:
        """The counters now; None where there is no /proc/stat."""
        clock, ended = time.monotonic(), os.times()
        own = time.process_time() + ended.children_user + ended.children_system
        text = _text(self._stat)
        if text is None:
            return None
        work, stolen, running, online = parse_stat(text, self._allowed)
        usable = len(online & self._allowed)
        if not usable:
            return None
        # The run queue is of the whole machine: on a part of its cores it says nothing.
        whole = running is not None and online <= self._allowed
        queued = max(0, running - self._own_running()) if running is not None and whole else None
        pressure = _text(self._pressure)
        throttled = [parse_throttled(found) for group in self._groups if (found := _text(group))]
        quotas = [quota for group in self._groups if (quota := _quota(group.parent)) is not None]
        return Reading(
            clock=clock,
            cores=min([float(usable), *quotas]),
            work=work,
            stolen=stolen,
            own=own,
            queued=queued,
            waiting=None if pressure is None else parse_pressure(pressure),
            throttled=max((each for each in throttled if each is not None), default=None),
        )

    def _own_running(self) -> int:
        """Threads of this process that run or wait for a core now; at least the one that asks."""
        states = []
        for task in self._tasks.glob("*/stat"):
            text = _text(task) or ""
            states.append(text.rpartition(")")[2].split()[:1])
        return max(1, states.count(["R"]))


class Watch:
    """Readings from its making on; `look` adds one, `usage` adds one and sums up."""

    def __init__(self, system: System | None = None) -> None:
        self._system = system or System()
        self._readings: list[Reading] = []
        self.look()

    def look(self) -> None:
        """Read now."""
        reading = self._system.read()
        if reading is not None:
            self._readings.append(reading)

    def usage(self) -> Usage | None:
        """From the first reading until now; None where nothing is known."""
        self.look()
        return usage_of(self._readings)

    def recent(self, shortest: float = SHORTEST_S) -> Usage | None:
        """From the newest reading that is `shortest` seconds old; waits if the first one is not."""
        if not self._readings:
            return None
        age = time.monotonic() - self._readings[0].clock
        if age < shortest:
            time.sleep(shortest - age)
        self.look()
        until = self._readings[-1].clock - shortest
        old = [index for index, each in enumerate(self._readings) if each.clock <= until]
        return usage_of(self._readings[old[-1] if old else 0 :])


def usage_of(readings: Sequence[Reading]) -> Usage | None:
    """What happened from the first reading to the last; None for fewer than two."""
    if len(readings) < 2 or readings[-1].clock <= readings[0].clock:
        return None
    first, last = readings[0], readings[-1]
    seconds = last.clock - first.clock
    others = (last.work - first.work) - (last.own - first.own)
    queued = [each.queued for each in readings if each.queued is not None]
    return Usage(
        seconds=seconds,
        cores=last.cores,
        others=max(0.0, others / seconds),
        stolen=max(0.0, (last.stolen - first.stolen) / seconds),
        error=math.ceil(last.cores) / ticks_a_second() / seconds,
        queued=sum(queued) / len(queued) if queued else None,
        waiting=_rise(first.waiting, last.waiting, seconds),
        throttled=_rise(first.throttled, last.throttled, seconds),
        readings=len(readings),
    )


def _shown(cores: float) -> str:
    """ "1.3", "0.04": a figure that counts as busy never reads as none."""
    return f"{cores:.1f}" if cores >= 0.095 else f"{cores:.2f}"


def said_busy(usage: Usage | None) -> str:
    """Why a timing of this window is one of a busy machine: "1.3 of 2 cores by others"; or "".

    Every part, separated by ", ", begins with its figure.
    """
    if usage is None:
        return ""
    said, cores = [], f"{usage.cores:g} cores"
    if usage.others - usage.error > OTHERS * usage.cores:
        said.append(f"{_shown(usage.others)} of {cores} by others")
    if usage.stolen - usage.error > STOLEN * usage.cores:
        said.append(f"{_shown(usage.stolen)} of {cores} stolen by other machines")
    queued = usage.queued if usage.readings >= QUEUE_READINGS else None
    if queued is not None and queued > QUEUED * usage.cores:
        said.append(f"{queued:.1f} tasks of others in the run queue of {cores}")
    if usage.throttled is not None and usage.throttled > THROTTLED:
        said.append(f"{usage.throttled:.2f} of the time held back by a quota")
    return ", ".join(said)


def with_note(metrics: Sequence[Metric], busy: str) -> list[Metric]:
    """The metrics, with `busy` (of `said_busy`) as a note of those that time decides."""
    if not busy:
        return list(metrics)
    return [
        each
        if each.unit in SIZES
        else each.model_copy(update={"notes": {**each.notes, BUSY: busy}})
        for each in metrics
    ]


def free_threads(configured: int, usage: Usage | None) -> int:
    """Threads for which others leave a core: at least 1, at most `configured`.

    A core of which others take half or more is theirs. Where nothing is known: `configured`.
    """
    if usage is None:
        return configured
    free = usage.cores - usage.others - usage.stolen
    return max(1, min(configured, math.ceil(free - 0.5)))


def parse_stat(
    text: str, allowed: Collection[int]
) -> tuple[float, float, int | None, frozenset[int]]:
    """Of /proc/stat: seconds of work and of steal on `allowed` cores, tasks running, all cores."""
    work = stolen = 0
    running, online = None, set()
    for line in text.splitlines():
        name, _, rest = line.partition(" ")
        if name == "procs_running":
            running = int(rest)
        number = name.removeprefix("cpu")
        if number == name or not number.isdigit():
            continue
        online.add(int(number))
        if int(number) in allowed:
            # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user and nice
            found = [*(int(word) for word in rest.split()[:8]), *[0] * 8]  # old kernels: fewer
            user, nice, system, _, _, irq, softirq, steal = found[:8]
            work += user + nice + system + irq + softirq
            stolen += steal
    rate = ticks_a_second()
    return work / rate, stolen / rate, running, frozenset(online)


def parse_pressure(text: str) -> float | None:
    """Of /proc/pressure/cpu: seconds in which some task waited for a core."""
    for line in text.splitlines():
        if line.startswith("some ") and "total=" in line:
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def parse_throttled(text: str) -> float | None:
    """Of cpu.stat, control groups of version 2 or 1: seconds held back by a quota."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return int(value) / 1e6
        if name == "throttled_time":
            return int(value) / 1e9
    return None


def parse_quota(text: str) -> float | None:
    """Of cpu.max: cores' worth of processor time; None for "max"."""
    quota, period = (*text.split(), "100000")[:2]
    return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)


def ticks_a_second() -> int:
    """The unit of /proc/stat."""
    return os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def _rise(first: float | None, last: float | None, seconds: float) -> float | None:
    return None if first is None or last is None else max(0.0, (last - first) / seconds)


def _allowed() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _groups(root: Path) -> list[Path]:
    """The cpu.stat files of this process's control group and those above it."""
    found = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kinds and "cpu" not in kinds.split(","):
            continue
        tops = ("", "unified") if not kinds else (kinds, "cpu")
        for top in dict.fromkeys(tops):
            mount = root / "sys/fs/cgroup" / top
            group = mount / path.lstrip("/")
            if ".." in group.parts:  # a group outside of this namespace: its own top is all we see
                group = mount
            while True:
                found.append(group / "cpu.stat")
                if group == mount:
                    break
                group = group.parent
    return [file for file in dict.fromkeys(found) if file.is_file()]


def _quota(group: Path) -> float | None:
    """Cores' worth that a control group, of version 2 or 1, may use; None without a quota."""
    text = _text(group / "cpu.max")
    if text is None:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota is None or period is None:
            return None
        text = f"{quota.strip()} {period.strip()}"
    return parse_quota(text)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
