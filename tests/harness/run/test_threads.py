"""The threads of a stage, under a sampler that says how busy others are."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from harness.records import busyness
from harness.records.busyness import Reading
from harness.run.threads import Threads


@dataclass
class Sampler:
    """A machine of `cores` on which others take `others` of them; its clock runs by itself."""

    cores: float
    others: float | None
    clock: float = 0.0

    def read(self) -> Reading | None:
        self.clock += 1.0
        if self.others is None:
            return None
        work = self.others * self.clock
        return Reading(self.clock, self.cores, work, 0.0, 0.0, 0, None, None)


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four threads configured, and no waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(busyness.time, "monotonic", lambda: 1e9)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four")
def test_a_measurement_follows_the_free_cores_and_a_quantization_does_not() -> None:
    threads = Threads(None, Sampler(4, 2.6))
    threads.begin()
    threads.follow()
    assert torch.get_num_threads() == 1
    found = threads.entries()
    assert (found["configured"], found["usable"]) == (4, 4)
    assert found["before"]["others"] == 2.6
    assert found["busy"] == "2.6 of 4 cores by others"
    threads.begin()  # the next stage starts from the configured number
    assert torch.get_num_threads() == 4
    assert threads.entries()["before"] is None


@pytest.mark.usefixtures("four")
def test_a_number_of_threads_that_is_asked_for_is_kept() -> None:
    threads = Threads(4, Sampler(4, 4.0))
    threads.begin()
    threads.follow()
    assert torch.get_num_threads() == 4
    assert threads.entries()["busy"] == "4.0 of 4 cores by others"


@pytest.mark.usefixtures("four")
def test_where_nothing_is_known_the_number_stays_and_the_record_says_so() -> None:
    threads = Threads(None, Sampler(4, None))
    threads.begin()
    threads.follow()
    assert torch.get_num_threads() == 4
    assert threads.entries()["others"] == "not known: no /proc/stat here"
