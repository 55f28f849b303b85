"""Where the weights of a model's blocks come from, one block at a time.

The model is a skeleton: what lies outside the blocks is in memory, the blocks get their weights
only while they are worked on, and a thread reads the next block meanwhile.
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
    """A model whose blocks can be given their weights and lose them again.

    model   in eval mode; everything outside the blocks has its values on `device`.
    blocks  the decoder blocks of the model.
    device  where blocks are put.
    reads   whether blocks are read from somewhere else; False for a model that is whole in memory.
    """

    model: PreTrainedModel
    blocks: Blocks
    device: torch.device
    reads: bool

    def fetch(self, index: int) -> Weights:
        """Read the tensors of a block into host memory; called by a thread."""

    def attach(self, index: int, weights: Weights) -> None:
        """Put fetched tensors into the block, on `device`."""

    def blank(self, index: int) -> None:
        """Give the block zeros of the right shapes: enough to observe how it is called."""

    def release(self, index: int) -> None:
        """Take the weights from the block, so that their memory is free."""


class LoadedModel:
    """A model that is whole in memory as a source: nothing is read, nothing is freed."""

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
    """A model in memory as a source; a source as it is."""
    return LoadedModel(model) if isinstance(model, PreTrainedModel) else model


def each_block(
    source: BlockSource,
    first: int = 0,
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[int]:
    """Yield the numbers of the blocks from `first` on, each block with its weights in place.

    While the caller works on a block, a thread reads the next one: two blocks are in memory. The
    caller's work on a block ends when it asks for the next. `waiting` is entered while a read is
    waited for. Close the iterator (contextlib.closing) when it may not be run to its end.
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
                # The future holds the tensors as long as it lives: drop it with the next one.
                ahead = reader.submit(source.fetch, index + 1) if index + 1 < count else None
                yield index
            finally:
                source.release(index)


@contextmanager
def blocks_in_place(source: BlockSource, blank: bool = False) -> Iterator[None]:
    """Inside, the model's own forward pass finds the weights of every block when it comes to it.

    For one forward pass, which must run the blocks in order. With blank=True they are zeros:
    nothing is read, and the order is free.
    """
    if not source.reads:
        yield
        return
    arriving = None if blank else each_block(source)
    current = -1  # a hook of somebody else may run the current block again
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
