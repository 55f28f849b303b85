"""Says, once, that a quantization goes on from blocks that an interrupted run has finished."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from harness.records.record import QUANTIZATION
from harness.run.events import Listener, Resumed

Progress = Callable[[int, int, str], None]


class Resuming:
    """Made before a quantization begins, because its working folder does not outlive it.

    Which blocks are taken over shows in the first step that is counted: the layers of those blocks
    are counted already.
    """

    def __init__(self, artifact: Path, blocks: int, listen: Listener) -> None:
        from quant.checkpoint.unfinished import finished_blocks

        self._found = finished_blocks(artifact)
        self._blocks, self._listen = blocks, listen
        self._begun = self._told = False

    def watch(self, progress: Progress) -> Progress:
        """The same progress, with the event Resumed before the first step."""
        layers = list(accumulate((block.layers for block in self._found), initial=0))

        def step(done: int, total: int, what: str) -> None:
            if not self._begun and done - 1 in layers:
                self.tell(layers.index(done - 1))
            self._begun = True
            progress(done, total, what)

        return step

    def tell(self, taken: int) -> None:
        """So many blocks were taken over; told only once, and not when it was none."""
        if taken and not self._told:
            seconds = sum(block.seconds for block in self._found[:taken])
            self._listen(Resumed(QUANTIZATION, taken, self._blocks, seconds))
            self._told = True
