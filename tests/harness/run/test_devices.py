"""Stages that measure time have their device alone, and have their turn."""

import multiprocessing
import time
from pathlib import Path

import pytest

from harness.run import devices
from harness.run.devices import device_for

FORK = multiprocessing.get_context("fork")


def _use(folder: str, name: str, device: str, alone: bool, seconds: float, times: int) -> None:
    for _ in range(times):
        with device_for(Path(folder), device, alone, lambda _: None):
            began = time.monotonic()
            time.sleep(seconds)
            with open(Path(folder, "log"), "a") as file:
                file.write(f"{name} {device} {began} {time.monotonic()}\n")


def _use_named(folder: str, device: str) -> None:
    devices._name = lambda device: device
    _use(folder, "x", device, False, 0.0, 1)


def spans(folder: Path) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for line in (folder / "log").read_text().splitlines():
        name, _, began, ended = line.split()
        found.setdefault(name, []).append((float(began), float(ended)))
    return found


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def test_a_stage_that_measures_time_never_runs_beside_others(tmp_path: Path) -> None:
    """Though two others leave the device at no time together, it has its turn."""
    started = [
        FORK.Process(target=_use, args=(str(tmp_path), "one", "cpu", False, 0.03, 12)),
        FORK.Process(target=_use, args=(str(tmp_path), "two", "cpu", False, 0.045, 8)),
        FORK.Process(target=_use, args=(str(tmp_path), "timing", "cpu", True, 0.02, 3)),
        FORK.Process(target=_use, args=(str(tmp_path), "timing2", "cpu", True, 0.02, 3)),
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    found = spans(tmp_path)
    assert {name: len(each) for name, each in found.items()} == {
        "one": 12,
        "two": 8,
        "timing": 3,
        "timing2": 3,
    }
    every = [(name, span) for name, each in found.items() for span in each]
    for name, span in every:
        if name.startswith("timing"):
            beside = [other for other, each in every if overlap(span, each) and each != span]
            assert beside == []
    assert any(overlap(a, b) for a in found["one"] for b in found["two"]), "others share it"


def test_who_has_to_wait_is_told_once(tmp_path: Path) -> None:
    heard: list[str] = []
    with device_for(tmp_path, "cpu", True, heard.append):
        other = FORK.Process(target=_use, args=(str(tmp_path), "x", "cpu", False, 0.0, 1))
        other.start()
        time.sleep(0.2)
        assert not (tmp_path / "log").exists()
    other.join()
    assert (tmp_path / "log").exists()
    assert heard == []


def test_devices_of_two_names_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_name", lambda device: device)

    def refuse(device: str) -> None:
        raise AssertionError(device)

    with (
        device_for(tmp_path, "cuda:0", True, refuse),
        device_for(tmp_path, "cuda:1", True, refuse),
        device_for(tmp_path, "cpu", False, refuse),
    ):
        pass


def test_a_stage_over_several_devices_has_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one order, however they are named, so that two stages do not wait for each other."""
    monkeypatch.setattr(devices, "_name", lambda device: device)
    taken: list[str] = []
    one = devices.device_for

    def noted(results, device, alone, waiting):
        taken.append(device)
        return one(results, device, alone, waiting)

    monkeypatch.setattr(devices, "device_for", noted)
    heard: list[str] = []
    with devices.devices_for(tmp_path, ["cuda:1", "cuda:0"], True, heard.append):
        assert taken == ["cuda:0", "cuda:1"]
        other = FORK.Process(target=_use_named, args=(str(tmp_path), "cuda:1"))
        other.start()
        time.sleep(0.2)
        assert not (tmp_path / "log").exists()
    other.join()
    assert (tmp_path / "log").exists()
    assert heard == []
