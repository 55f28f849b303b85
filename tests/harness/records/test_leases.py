"""Locks on a shared folder: one owner at a time, on file systems with and without common flocks."""

import json
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from harness.records import leases
from harness.records.leases import Lease, held

FORK = multiprocessing.get_context("fork")


def elsewhere(name: str) -> None:
    """Make this process one of another machine, whose file system has no common flocks."""
    leases.fcntl = None  # type: ignore[assignment]
    leases._machine = lambda: (name, name)  # type: ignore[assignment]


def _count(folder: str, name: str, times: int) -> None:
    elsewhere(name)
    for _ in range(times):
        with held(Path(folder, "a.lock")):
            file = Path(folder, "count")
            before = int(file.read_text())
            time.sleep(0.002)
            file.write_text(str(before + 1))


def test_one_owner_at_a_time_on_nodes_without_common_flocks(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    names = ["one", "two", "two", "three"]  # two processes of one machine among them
    processes = [FORK.Process(target=_count, args=(str(tmp_path), name, 8)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "32"


def _stay(folder: str, name: str | None) -> None:
    if name is not None:
        elsewhere(name)
    with held(Path(folder, "a.lock")):
        Path(folder, "ready").touch()
        time.sleep(60)


def staying(folder: Path, name: str | None) -> ForkProcess:
    process = FORK.Process(target=_stay, args=(str(folder), name))
    process.start()
    while not (folder / "ready").exists():
        time.sleep(0.01)
    return process


def kill(process: ForkProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that are renewed ten times a second, and stale after half a one."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.5)


def test_a_killed_owner_of_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    owner = staying(tmp_path, None)
    assert not Lease(tmp_path / "a.lock").take()
    kill(owner)
    assert Lease(tmp_path / "a.lock").take()


def test_so_is_one_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number, and when it was born, say whether it lives; a number used again does not."""
    monkeypatch.setattr(leases, "fcntl", None)
    owner = staying(tmp_path, None)
    lease = Lease(tmp_path / "a.lock")
    assert not lease.take()
    file = tmp_path / "a.1.lease"
    said = json.loads(file.read_text())
    assert said["pid"] == owner.pid
    file.write_text(json.dumps(said | {"born": said["born"] - 60}))
    assert lease.take()
    lease.release()
    kill(owner)


def test_an_owner_elsewhere_is_dead_when_it_has_not_renewed_its_lease(
    tmp_path: Path, hasty: None
) -> None:
    owner = staying(tmp_path, "elsewhere")
    lease, began = Lease(tmp_path / "a.lock"), time.monotonic()
    while time.monotonic() - began < 1.2:  # a live one keeps its lock, however long it takes
        assert not lease.take()
        time.sleep(0.05)
    assert lease.owner().startswith(f"process {owner.pid} on ")
    kill(owner)
    began = time.monotonic()
    lease.wait()
    assert 0.3 < time.monotonic() - began < 5
    lease.release()


def test_a_lock_given_back_is_free_for_every_machine(tmp_path: Path) -> None:
    _count_one = FORK.Process(target=_once, args=(str(tmp_path), "elsewhere"))
    _count_one.start()
    _count_one.join()
    assert (tmp_path / "a.1.lease").read_text() == leases.RELEASED
    assert Lease(tmp_path / "a.lock").take()


def _once(folder: str, name: str) -> None:
    elsewhere(name)
    with held(Path(folder, "a.lock")):
        pass


def test_a_clock_that_jumps_makes_no_owner_dead(
    tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stamps of another machine are compared with each other alone."""
    owner = staying(tmp_path, "elsewhere")
    lease = Lease(tmp_path / "a.lock")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not lease.take()
    time.sleep(0.3)
    assert not lease.take()
    kill(owner)


def _enter(folder: str, name: str, seed: int) -> None:
    leases.RENEW_SECONDS, leases.STALE_SECONDS = 0.05, 0.6
    elsewhere(name)
    inside, chance = Path(folder, "inside"), random.Random(seed)
    while True:
        with held(Path(folder, "a.lock")):
            inside.write_text(name)
            time.sleep(chance.uniform(0, 0.02))
            if inside.read_text() != name:
                Path(folder, "broken").touch()
            with open(Path(folder, "entered"), "a") as file:
                file.write(f"{name}\n")


def test_killed_at_random_points_no_two_are_ever_inside(tmp_path: Path) -> None:
    chance = random.Random(0)
    processes = {}
    for number in range(6):
        name = f"node-{number}"
        processes[name] = FORK.Process(target=_enter, args=(str(tmp_path), name, number))
        processes[name].start()
    for number in range(3):
        time.sleep(chance.uniform(0.1, 0.5))
        kill(processes[f"node-{number}"])
    began = len((tmp_path / "entered").read_text().split())
    deadline = time.monotonic() + 10
    while len((tmp_path / "entered").read_text().split()) < began + 5:
        assert time.monotonic() < deadline, "nobody gets in after the kills"
        time.sleep(0.05)
    for number in range(3, 6):
        kill(processes[f"node-{number}"])
    assert not (tmp_path / "broken").exists()
