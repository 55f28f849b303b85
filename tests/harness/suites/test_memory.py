"""The peak of memory while a step works, whatever the process did before."""

import pytest
import torch

from harness.suites import memory
from quant.memory.heaps import trim_heap


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """What other tests freed may be kept by the process, and a step would be served from it."""
    trim_heap()


def test_memory_peak_sees_what_a_step_allocates() -> None:
    size = 64 * 2**20

    def allocate() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = memory.measure_peak(allocate, ["cpu"])
    assert peak.bytes > size
    if peak.working_bytes is not None:
        assert 0.9 * size < peak.working_bytes < 1.5 * size
        quiet = memory.measure_peak(lambda: None, ["cpu"])
        assert quiet.working_bytes < 0.2 * size  # the earlier peak is forgotten


def test_a_nested_memory_peak_does_not_hide_what_came_before_it() -> None:
    size = 64 * 2**20

    def allocate(megabytes: int) -> None:
        torch.ones(megabytes * 2**20, dtype=torch.uint8)

    def step() -> None:
        allocate(96)
        memory.measure_peak(lambda: allocate(8), ["cpu"])

    outer = memory.measure_peak(step, ["cpu"])
    if outer.working_bytes is not None:
        assert outer.working_bytes > size


def test_peaks_of_several_devices_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    held, waited = {"cuda:0": [10, 10], "cuda:1": [20, 20]}, []

    def grow() -> None:
        held["cuda:0"][1], held["cuda:1"][1] = 17, 25

    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held[device][1])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held[device][0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    peak = memory.measure_peak(grow, ["cuda:0", "cuda:1"])
    assert (peak.bytes, peak.working_bytes) == (42, 12)
    assert "of 2 devices, added (cuda:0 0.00 GB, cuda:1 0.00 GB)" in peak.notes["measured"]
    assert set(waited) == {"cuda:0", "cuda:1"}
