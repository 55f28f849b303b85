"""Where finished blocks go, and the thread that keeps one while the next one is made."""

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
from quant.input_operator import InputOperator
from quant.transforms.base import Transform
from quant.weight import QuantizedWeight

STAGE = "write"


@dataclass(frozen=True)
class Finished:
    """What making a block found and cost.

    The costs of earlier, shared work count to block 0; what comes after the hand-over of a block
    (keeping it, its pass forward) counts to the block after it.
    """

    layers: list[LayerResult]
    stages: list[StageCost]


class BlockSink(Protocol):
    """Takes the quantized weights of block after block, and may hold some from an earlier run."""

    @property
    def finished(self) -> int:
        """Blocks 0 .. finished - 1 are there already."""

    def put(
        self, index: int, weights: dict[str, QuantizedWeight], made: Finished, /
    ) -> Callable[[], None]:
        """Take a block while its module has its weights; the call that this returns keeps it.

        Once that call has returned, the block is never made again. Another thread makes it, when
        the module may have lost its weights. Calls are made in the order of the blocks, and each
        has returned before the next block is put.
        """

    def get(self, index: int) -> tuple[dict[str, QuantizedWeight], Finished]:
        """A finished block, as it was put."""

    def beside(self, index: int) -> dict[str, Tensor]:
        """What else a finished block holds, by full name, as it was put."""

    def operators(self, index: int, transforms: Sequence[Transform]) -> dict[str, InputOperator]:
        """By full name, what is kept in front of layers of a finished block by the transforms."""


@dataclass
class Kept:
    """A sink in memory."""

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    finished: int = 0

    def put(
        self, index: int, weights: dict[str, QuantizedWeight], _: Finished
    ) -> Callable[[], None]:
        self.weights |= weights
        self.finished = index + 1
        return lambda: None

    def get(self, index: int) -> tuple[dict[str, QuantizedWeight], Finished]:
        raise NotImplementedError("nothing is finished before a run in memory begins")

    def beside(self, index: int) -> dict[str, Tensor]:
        raise NotImplementedError("nothing is finished before a run in memory begins")

    def operators(self, index: int, transforms: Sequence[Transform]) -> dict[str, InputOperator]:
        raise NotImplementedError("nothing is finished before a run in memory begins")


class WriteBehind:
    """One call at a time in a thread of its own; a context manager around the run that begins them.

    Leaving it waits for the call under way, whatever the reason, so that nothing computed is lost.
    An error of a call is raised by `settle`, so before the next call begins. When the run ends with
    an error of its own that one is raised, and carries the other as a note.

    one_thread  torch's operators use the thread of the calls alone: a second team of threads on the
                cores of a run that uses all of them only has both wait for each other.
    """

    def __init__(self, meter: StageMeter, one_thread: bool) -> None:
        self._meter, self._one_thread = meter, one_thread
        self._thread = ThreadPoolExecutor(1, "write-block")
        self._under_way: Future[float] | None = None

    def __enter__(self) -> Self:
        if self._one_thread:
            threads = torch.get_num_threads()
            self._thread.submit(_limit_threads).result()
            # A count belongs to the thread that sets it, and to those that start later: undo that.
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
        """Let the thread call `write`, after what is under way has been settled."""
        self.settle()
        self._under_way = self._thread.submit(_timed, write)

    def settle(self) -> None:
        """Wait for the call under way, if there is one, and raise its error.

        The waiting is seconds of the stage "write"; what the thread worked is added behind it.
        """
        if self._under_way is None:
            return
        with self._meter.stage(STAGE):
            wait([self._under_way])  # interrupted here, it stays under way until __exit__
        done, self._under_way = self._under_way, None
        self._meter.behind(STAGE, done.result())


def _limit_threads() -> None:
    torch.get_num_threads()  # the first call in a thread takes the count of the process
    torch.set_num_threads(1)


def _timed(write: Callable[[], None]) -> float:
    begin = time.perf_counter()
    write()
    return time.perf_counter() - begin
