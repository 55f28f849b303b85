"""Sources of a model's blocks, which load and free the weights of one block at a time.

The model is a skeleton: everything outside the blocks is in memory, a block has weights only while
it is processed, and a thread reads the next block in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quant.blocks import Blocks, find_blocks

Weights = dict[str, Tensor]
"""Tensors of one block by their full names in the model."""


class BlockSource(Protocol):
    """A model whose blocks can be given weights and freed again.

    model   in eval mode; everything outside the blocks has its values on `device`.
    blocks  the decoder blocks of the model.
    device  device of the blocks.
    reads   whether blocks are read from elsewhere; False for a model that is completely in memory.
    """

    model: PreTrainedModel
    blocks: Blocks
    device: torch.device
    reads: bool

    def fetch(self, index: int) -> Weights:
        """Read the tensors of a block into host memory; called from a thread."""

    def attach(self, index: int, weights: Weights) -> None:
        """Set fetched tensors in the block, on `device`."""

    def blank(self, index: int) -> None:
        """Set zeros of the right shapes in the block, to observe how the model calls it."""

    def release(self, index: int) -> None:
        """Remove the weights from the block, so that their memory is freed."""


class LoadedModel:
    """A source for a model that is completely in memory: nothing is read or freed."""

    reads = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.blocks = find_blocks(model)
        self.device = next(model.parameters()).device

    def fetch(self, index: int) -> Weights:  # noqa: ARG002
        return {}

    def attach(self, index: int, weights: Weights) -> None:
        pass

    def blank(self, index: int) -> None:
        pass

    def release(self, index: int) -> None:
        pass


def as_source(model: PreTrainedModel | BlockSource) -> BlockSource:
    """Wrap a model in memory as a source; return a source unchanged."""
    return LoadedModel(model) if isinstance(model, PreTrainedModel) else model


def each_block(
    source: BlockSource,
    first: int = 0,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[int]:
    """Yield the block numbers from `first` on, each while its block has its weights.

    A thread reads the next block while the caller processes the current one, so two blocks are in
    memory. A block is released when the caller asks for the next one. `waiting` is a context that
    is entered while waiting for a read. Close the iterator (contextlib.closing) if it may not be
    exhausted.
    """
    count = len(source.blocks)
    with ThreadPoolExecutor(1, "read-block") as reader:
        ahead: Future[Weights] | None = (
            reader.submit(source.fetch, first) if first < count else None
        )
        for index in range(first, count):
            assert ahead is not None
            try:
                with waiting():
                    source.attach(index, ahead.result())
                # A future keeps its tensors alive, so it is replaced here.
                ahead = reader.submit(source.fetch, index + 1) if index + 1 < count else None
                yield index
            finally:
                source.release(index)


@contextmanager
def blocks_in_place(source: BlockSource, blank: bool = False) -> Iterator[None]:
    """Load every block when the model's own forward pass reaches it, and release it afterwards.

    Valid for one forward pass, which must run the blocks in order. With blank=True weights are
    zeros: nothing is read, and the order is free.
    """
    if not source.reads:
        yield
        return
    arriving = None if blank else each_block(source)
    current = -1  # another hook may run the current block again
    handles = []
    for index, block in enumerate(source.blocks.modules):

        def before(*_: object, index: int = index) -> None:
            nonlocal current
            if arriving is None:
                source.blank(index)
            elif index != current:
                current = next(arriving)

        def after(*_: object, index: int = index) -> None:
            if arriving is None:
                source.release(index)

        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if arriving is not None:
            arriving.close()
