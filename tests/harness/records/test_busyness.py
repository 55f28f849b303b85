"""How busy others keep a machine: the files of /proc, the rule for busy, and the free threads."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.records import busyness
from harness.records.busyness import (
    Reading,
    System,
    Usage,
    Watch,
    free_threads,
    said_busy,
    usage_of,
    with_note,
)
from harness.records.record import Metric

STAT = """cpu  6068434 138415 533380 976591 17590 0 6250 32149 0 0
cpu0 2880253 63266 240782 679187 5506 7 344 16233 0 0
cpu1 3188180 75148 292597 297404 12083 0 5906 15916 0 0
cpu2 100 0 0 0 0 0 0 0 0 0
intr 1 2 3
procs_running 5
procs_blocked 0
"""
PRESSURE = """some avg10=15.52 avg60=9.85 avg300=7.51 total=20852368760
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""


@pytest.fixture(autouse=True)
def hundredths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busyness, "ticks_a_second", lambda: 100)


def made(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_counters_of_two_of_three_cores() -> None:
    work, stolen, running, online = busyness.parse_stat(STAT, {0, 1})
    first = 2880253 + 63266 + 240782 + 7 + 344
    second = 3188180 + 75148 + 292597 + 0 + 5906
    assert work == pytest.approx((first + second) / 100)
    assert stolen == pytest.approx((16233 + 15916) / 100)
    assert (running, online) == (5, frozenset({0, 1, 2}))


def test_an_old_kernel_counts_no_steal() -> None:
    assert busyness.parse_stat("cpu0 100 0 50 7\n", {0}) == (1.5, 0.0, None, frozenset({0}))


def test_pressure_quota_and_time_held_back() -> None:
    assert busyness.parse_pressure(PRESSURE) == pytest.approx(20852.36876)
    assert busyness.parse_pressure("") is None
    assert busyness.parse_throttled("nr_throttled 3\nthrottled_usec 1500000\n") == 1.5
    assert busyness.parse_throttled("nr_throttled 3\nthrottled_time 1500000000\n") == 1.5
    assert busyness.parse_throttled("nr_periods 0\n") is None
    assert busyness.parse_quota("max 100000") is None
    assert busyness.parse_quota("150000 100000") == 1.5
    assert busyness.parse_quota("-1 100000") is None


def test_a_reading_of_a_machine(tmp_path: Path) -> None:
    states = {
        "proc__self__task__7__stat": "7 (python) R 1 2 3",
        "proc__self__task__8__stat": "8 (a) R) (b) S 1 2 3",
    }
    made(tmp_path, proc__stat=STAT, proc__pressure__cpu=PRESSURE, **states)
    found = System(tmp_path, allowed={0, 1, 2}).read()
    assert found is not None
    assert (found.cores, found.queued, found.throttled) == (3, 4, None)
    part = System(tmp_path, allowed={0, 1}).read()
    assert part is not None
    assert (part.cores, part.queued) == (2, None)  # the queue is of all three cores


@pytest.mark.parametrize(
    ("line", "folder", "quota", "stat"),
    [
        ("0::/jobs/mine\n", "jobs", {"cpu_max": "150000 100000"}, "throttled_usec 2000000\n"),
        (
            "3:cpu,cpuacct:/jobs/mine\n",
            "cpu,cpuacct/jobs",
            {"cpu_cfs_quota_us": "150000\n", "cpu_cfs_period_us": "100000\n"},
            "throttled_time 2000000000\n",
        ),
    ],
)
def test_a_quota_of_a_group_above_is_fewer_cores(
    tmp_path: Path, line: str, folder: str, quota: dict[str, str], stat: str
) -> None:
    made(tmp_path, proc__stat=STAT, proc__self__cgroup=line)
    made(tmp_path / "sys/fs/cgroup" / folder, **quota, cpu_stat=stat)
    found = System(tmp_path, allowed={0, 1}).read()
    assert found is not None
    assert (found.cores, found.throttled) == (1.5, 2.0)


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    watch = Watch(System(tmp_path))
    watch.look()
    assert watch.recent() is None
    assert watch.usage() is None
    assert said_busy(None) == ""
    assert free_threads(8, None) == 8


def reading(clock: float, **changes) -> Reading:
    start = {"cores": 2.0, "work": 0.0, "stolen": 0.0, "own": 0.0}
    none = {"queued": None, "waiting": None, "throttled": None}
    return Reading(**({"clock": clock} | start | none | changes))


def test_what_others_did_is_all_work_but_ours() -> None:
    first = reading(10.0, work=100.0, own=7.0, stolen=1.0, queued=1, waiting=3.0, throttled=0.0)
    between = reading(11.0, queued=3)
    last = reading(14.0, work=107.0, own=8.0, stolen=1.4, queued=2, waiting=5.0, throttled=0.2)
    found = usage_of([first, between, last])
    assert found is not None
    assert (found.seconds, found.others, found.queued, found.readings) == (4.0, 1.5, 2.0, 3)
    assert found.stolen == pytest.approx(0.1)
    assert (found.waiting, found.throttled) == (0.5, pytest.approx(0.05))
    assert found.error == pytest.approx(2 * 0.01 / 4)
    assert found.entries()["others"] == 1.5


def usage(**changes) -> Usage:
    quiet = Usage(1.0, 2.0, 0.05, 0.0, 0.02, 0.0, 0.0, 0.0, 5)
    return Usage(**(vars(quiet) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"others": 0.21}, ""),  # 0.20 is the limit, and the count may be off by 0.02
        ({"others": 1.3}, "1.3 of 2 cores by others"),
        ({"others": 1.3, "error": 1.5}, ""),  # too short a window to say so
        ({"stolen": 0.3}, "0.3 of 2 cores stolen by other machines"),
        ({"stolen": 0.044, "error": 0.001}, "0.04 of 2 cores stolen by other machines"),
        ({"queued": 2.5}, "2.5 tasks of others in the run queue of 2 cores"),
        ({"queued": 2.5, "readings": 2}, ""),
        ({"throttled": 0.5}, "0.50 of the time held back by a quota"),
        (
            {"others": 1.3, "stolen": 0.3},
            "1.3 of 2 cores by others, 0.3 of 2 cores stolen by other machines",
        ),
    ],
)
def test_the_rule_for_busy(changes: dict[str, float], said: str) -> None:
    assert said_busy(usage(**changes)) == said


@pytest.mark.parametrize(
    ("cores", "others", "stolen", "configured", "threads"),
    [
        (2, 0.0, 0.0, 2, 2),
        (2, 0.4, 0.0, 2, 2),
        (2, 0.5, 0.0, 2, 1),  # half of a core is that core
        (2, 2.1, 0.0, 2, 1),
        (16, 4.2, 0.0, 16, 12),
        (16, 4.2, 0.0, 8, 8),
        (16, 0.0, 3.0, 16, 13),
        (1.5, 0.0, 0.0, 64, 1),  # a quota
    ],
)
def test_threads_for_which_others_leave_a_core(
    cores: float, others: float, stolen: float, configured: int, threads: int
) -> None:
    assert free_threads(configured, usage(cores=cores, others=others, stolen=stolen)) == threads


def test_a_note_of_figures_that_are_not_sizes() -> None:
    time = Metric(name="decode_ms", task="a", value=1, unit="ms", n=1, n_unit="x", notes={"k": "v"})
    sizes = [
        Metric(name=unit, task="a", value=1, unit=unit, n=1, n_unit="x")
        for unit in ("bytes", "bits", "weights")
    ]
    marked = with_note([time, *sizes], "1.3 of 2 cores by others")
    assert marked[0].notes == {"k": "v", "busy": "1.3 of 2 cores by others"}
    assert marked[1:] == sizes
    assert with_note([time, *sizes], "") == [time, *sizes]


def test_what_a_child_took_is_no_work_of_others() -> None:
    """Another program quantizes a model in a process of its own."""
    before = System().read()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    after = System().read()
    if before is None or after is None:
        pytest.skip("there is no /proc here")
    taken = time.process_time()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert after.own - before.own > 10 * (time.process_time() - taken)
