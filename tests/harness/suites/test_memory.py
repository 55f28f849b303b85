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
