"""Sinks for finished blocks, and the background thread that stores them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from quant.calibrate.cost import StageCost, StageMeter
from quant.calibrate.layers import LayerResult
from quant.calibrate.results import KeptWeights
from quant.input_operator import InputOperator
from quant.transforms.base import Transform
from quant.weight import AnyWeight

STAGE = "write"


@dataclass(frozen=True)
class Finished:
    """Results and costs of one finished block.

    Costs of earlier, shared work count towards block 0. Costs after the hand-over of a block
    (storing it, its forward pass) count towards the next block.
    """

    layers: list[LayerResult]
    stages: list[StageCost]


class BlockSink(Protocol):
    """Stores the quantized weights of the blocks, in order; may have blocks of an earlier run."""

    @property
    def finished(self) -> int:
        """Number of blocks stored so far: blocks 0 .. finished - 1."""

    def put(
        self, index: int, weights: dict[str, AnyWeight], made: Finished, /
    ) -> Callable[[], None]:
        """Accept a block while its module still has its weights; return a function that stores it.

        put must copy whatever it needs from the module. The returned function is called once, in
        another thread, when the module may have lost its weights; when it returns, the block is
        final and a resumed run will not compute it again. Blocks are put in order, and each one's
        function has returned before the next put.
        """

    def put_outside(self, name: str, weight: AnyWeight, /) -> None:
        """Accept the quantized embeddings or head, at any time; resumed runs put them again."""

    def get(self, index: int) -> tuple[dict[str, AnyWeight], Finished]:
        """Return a finished block, as it was put."""

    def other_tensors(self, index: int) -> dict[str, Tensor]:
        """Return the other tensors of a finished block (not quantized weights), by full name."""

    def operators(self, index: int, transforms: Sequence[Transform]) -> dict[str, InputOperator]:
        """Return the operators that the transforms kept in a finished block, by layer name."""


@dataclass
class InMemorySink:
    """A sink in memory; the codes of a block are packed while the next one is made."""

    weights: KeptWeights = field(default_factory=KeptWeights)
    finished: int = 0

    def put(self, index: int, weights: dict[str, AnyWeight], _: Finished) -> Callable[[], None]:
        self.weights.add(weights)
        self.finished = index + 1
        return lambda: self.weights.pack(weights)

    def put_outside(self, name: str, weight: AnyWeight) -> None:
        self.weights.add({name: weight})
        self.weights.pack([name])

    def get(self, index: int) -> tuple[dict[str, AnyWeight], Finished]:
        raise NotImplementedError("a run in memory cannot be resumed")

    def other_tensors(self, index: int) -> dict[str, Tensor]:
        raise NotImplementedError("a run in memory cannot be resumed")

    def operators(self, index: int, transforms: Sequence[Transform]) -> dict[str, InputOperator]:
        raise NotImplementedError("a run in memory cannot be resumed")


class NoSink(InMemorySink):
    """A sink that keeps nothing, for runs that measure layers and quantize none."""

    def put(
        self, index: int, _weights: dict[str, AnyWeight], _made: Finished
    ) -> Callable[[], None]:
        self.finished = index + 1
        return lambda: None


class WriteBehind:
    """A background thread that runs one write at a time; a context manager around the run.

    Leaving the context waits for the write under way, even after an error, so that no finished
    block is lost. `settle` raises the error of a write, so at the latest the next `begin` does. If
    the run itself ends with an error, that one is raised, with the write's error as a note.

    one_thread  limit torch's operators in this thread to one CPU thread: a second team of threads
                on cores that the run already uses would slow down both.
    """

    def __init__(self, meter: StageMeter, one_thread: bool) -> None:
        self._meter, self._one_thread = meter, one_thread
        self._thread = ThreadPoolExecutor(1, "write-block")
        self._under_way: Future[float] | None = None

    def __enter__(self) -> Self:
        if self._one_thread:
            threads = torch.get_num_threads()
            self._thread.submit(_limit_threads).result()
            # The limit also applies to threads that are started later, so restore it.
            torch.set_num_threads(threads)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        failure = None if self._under_way is None else self._under_way.exception()
        if failure is not None:
            if error is None:
                raise failure
            error.add_note(f"The block before it could not be written: {failure}")

    def begin(self, write: Callable[[], None]) -> None:
        """Settle the write under way, then start `write` in the background thread."""
        self.settle()
        self._under_way = self._thread.submit(_timed, write)

    def settle(self) -> None:
        """Wait for the write under way, if there is one, and raise its error.

        The waiting time is added to the seconds of stage "write", the thread's working time to its
        `background`.
        """
        if self._under_way is None:
            return
        with self._meter.stage(STAGE):
            wait([self._under_way])  # after an interrupt here, __exit__ still waits for it
        done, self._under_way = self._under_way, None
        self._meter.add_background(STAGE, done.result())


def _limit_threads() -> None:
    torch.get_num_threads()  # the first call in a thread resets the count to the process's
    torch.set_num_threads(1)


def _timed(write: Callable[[], None]) -> float:
    begin = time.perf_counter()
    write()
    return time.perf_counter() - begin
