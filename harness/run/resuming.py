"""The event Resumed, sent once if a quantization continues an interrupted run."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from harness.records.record import QUANTIZATION
from harness.run.events import Listener, Resumed

if TYPE_CHECKING:
    from quant.calibrate.run import Progress


class Resuming:
    """Sends Resumed before the first progress step of a quantization.

    Create it before the quantization starts: it reads the partial artifact, which the quantization
    removes. The count of the first step shows which blocks were reused: it includes their layers.
    """

    def __init__(self, artifact: Path, blocks: int, listen: Listener) -> None:
        from quant.checkpoint.unfinished import finished_blocks

        self._found = finished_blocks(artifact)
        self._blocks, self._listen = blocks, listen
        self._begun = self._told = False

    def watch(self, progress: Progress) -> Progress:
        """Wrap `progress` to send Resumed before the first step."""
        layers = list(accumulate((block.layers for block in self._found), initial=0))

        def step(done: int, total: int, what: str) -> None:
            if not self._begun and done - 1 in layers:
                self.tell(layers.index(done - 1))
            self._begun = True
            progress(done, total, what)

        return step

    def tell(self, taken: int) -> None:
        """Send Resumed for `taken` reused blocks, at most once and only if there are any."""
        if taken and not self._told:
            seconds = sum(block.seconds for block in self._found[:taken])
            self._listen(Resumed(QUANTIZATION, taken, self._blocks, seconds))
            self._told = True
