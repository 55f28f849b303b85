"""The arithmetic of timing by graphs, with a stand-in for the GPU whose every step has its time."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from cuda_ext.bench import timing
from cuda_ext.bench.timing import Contender, measure


class Machine:
    """A clock in milliseconds that steps move on; what is captured does so when it is replayed."""

    def __init__(self) -> None:
        self.now, self.captured, self.graphs = 0.0, None, []

    def step(self, ms: float) -> None:
        if self.captured is None:
            self.now += ms
        else:
            self.captured.append(ms)

    @contextmanager
    def graph(self, graph: "Graph"):  # type: ignore[no-untyped-def]
        self.captured = graph.steps
        yield
        self.captured = None
        self.graphs.append(graph)


class Graph:
    machine: Machine

    def __init__(self) -> None:
        self.steps: list[float] = []

    def replay(self) -> None:
        self.machine.now += sum(self.steps)


class Event:
    machine: Machine

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = self.machine.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(Graph, "machine", made, raising=False)
    monkeypatch.setattr(Event, "machine", made, raising=False)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": Stream,
        "current_stream": Stream,
        "graph": made.graph,
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made


def contender(machine: Machine, name: str, ms: float, copies: int) -> Contender:
    return Contender(name, [lambda: machine.step(ms) for _ in range(copies)], 0)


def test_a_value_is_the_time_of_one_step(machine: Machine) -> None:
    rivals = [contender(machine, "slow", 2.0, 3), contender(machine, "quick", 0.002, 10)]
    times = measure(rivals, 1.0, "cuda")
    assert times["slow"] == pytest.approx([2.0] * len(times["slow"]))
    assert times["quick"] == pytest.approx([0.002] * len(times["quick"]))
    assert len(times["slow"]) == len(times["quick"])  # in turn
    slow, quick = machine.graphs
    assert len(slow.steps) == 3  # all copies once: 6 ms
    assert len(quick.steps) == 2500  # 250 passes over all copies: 5 ms
    # 200 ms of each, the slow one as often as the quick one.
    assert 200 <= sum(quick.steps) * len(times["quick"]) < 206


def test_few_seconds_and_many_copies_have_bounds(machine: Machine) -> None:
    times = measure([contender(machine, "tiny", 1e-5, 900)], 0.01, "cuda")
    assert len(machine.graphs[0].steps) <= timing.MAX_LAUNCHES
    assert len(times["tiny"]) >= timing.MIN_ROUNDS
