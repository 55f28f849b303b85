"""Time contenders in turn: by the clock on the CPU, by replayed graphs on CUDA."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

MIN_ROUNDS = 5
MIN_MS = 200.0  # per contender, on CUDA
REPLAY_MS = 5.0  # long compared with the resolution of an event, short compared with a round
MAX_LAUNCHES = 4000

Step = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One way to multiply: a step for each copy of the weight, and the bytes moved per step."""

    name: str
    steps: Sequence[Step]
    bytes: int


def last_level_cache(device: str = "cpu") -> int:
    """Return the bytes of the GPU's L2, or of the largest CPU cache; 64 MiB if unknown."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        scale = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes, default=64 * 2**20)


def copies_for(size: int, cache: int) -> int:
    """Return how many copies of a weight exceed four times the cache; at least two."""
    return max(2, -(-4 * cache // size))


def measure(rivals: Sequence[Contender], seconds: float, device: str) -> dict[str, list[float]]:
    """Return milliseconds per step of every contender, measured in turn for about `seconds`.

    On the CPU a value is one step, at least five per contender. On CUDA it is the mean step of one
    replay of a graph that runs through all copies, at least five replays and 200 ms per contender.
    """
    if device == "cpu":
        return _measure_by_clock(rivals, seconds)
    return _measure_by_graph(rivals, seconds)


def _measure_by_clock(rivals: Sequence[Contender], seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for rival in rivals:
        rival.steps[0]()
    start, turn = time.perf_counter(), 0
    # Whoever follows one that reads much, or has threads of its own, is slower by it: every round
    # somebody else.
    order = random.Random(0)
    while turn < MIN_ROUNDS or time.perf_counter() - start < seconds:
        for rival in order.sample(rivals, len(rivals)):
            step = rival.steps[turn % len(rival.steps)]
            began = time.perf_counter()
            step()
            times[rival.name].append((time.perf_counter() - began) * 1e3)
        turn += 1
    return times


@dataclass(frozen=True)
class _Replay:
    name: str
    graph: torch.cuda.CUDAGraph
    launches: int

    def milliseconds(self) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        result: float = begin.elapsed_time(end)
        return result


def _measure_by_graph(rivals: Sequence[Contender], seconds: float) -> dict[str, list[float]]:
    replays = [_captured(rival) for rival in rivals]
    for replay in replays:  # warm-up: clocks rise, and the driver uploads the graph
        replay.milliseconds()
    times: dict[str, list[float]] = {replay.name: [] for replay in replays}
    least = min(MIN_MS, 1e3 * seconds)
    start, rounds, spent = time.perf_counter(), 0, dict.fromkeys(times, 0.0)
    while rounds < MIN_ROUNDS or min(spent.values()) < least:
        for replay in replays:
            ms = replay.milliseconds()
            spent[replay.name] += ms
            times[replay.name].append(ms / replay.launches)
        rounds += 1
        if rounds >= MIN_ROUNDS and time.perf_counter() - start > 10 * seconds:
            break  # this contender is far slower than the others
    return times


def _captured(rival: Contender) -> _Replay:
    """Return a graph of all steps in turn, repeated until it takes about five milliseconds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        once = _pass_ms(rival)  # repeated, because the first pass loads kernels
    torch.cuda.current_stream().wait_stream(stream)
    most = max(1, MAX_LAUNCHES // len(rival.steps))
    passes = min(most, max(1, round(REPLAY_MS / max(once, 1e-3))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(passes):
            for step in rival.steps:
                step()
    return _Replay(rival.name, graph, passes * len(rival.steps))


def _pass_ms(rival: Contender) -> float:
    for step in rival.steps[:1]:
        step()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for step in rival.steps:
        step()
    end.record()
    end.synchronize()
    result: float = begin.elapsed_time(end)
    return result
