"""The threads of a cell's stages, and how busy others kept the machine meanwhile.

A quantization uses the threads that are configured. A stage that measures uses only as many as
others leave cores for: two threads that share a core wait for each other at every product. The
choice is recorded with what it rests on. A number in runtime.threads is kept whatever others do.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.records.busyness import (
    NOT_KNOWN,
    System,
    Usage,
    Watch,
    free_threads,
    said_busy,
)


class Threads:
    """Sets the threads of PyTorch for each stage of one cell.

    fixed  runtime.threads; None: torch's own number, and measuring stages follow the free cores.
    """

    def __init__(self, fixed: int | None, system: System | None = None) -> None:
        self._follows = fixed is None
        self._configured = torch.get_num_threads()
        self._system = system or System()
        self._lately = Watch(self._system)
        self._stage = self._lately
        self._before: Usage | None = None

    def begin(self) -> None:
        """At the start of a stage: the configured threads."""
        torch.set_num_threads(self._configured)
        self._before = None
        self._lately.look()
        self._stage = Watch(self._system)

    def follow(self) -> None:
        """Before a measurement: as many as others leave cores for, unless the number is fixed."""
        if self._follows and self._configured > 1:
            self._before = self._lately.recent()
            torch.set_num_threads(free_threads(self._configured, self._before))

    def entries(self) -> dict[str, Any]:
        """For the record of the stage: what was chosen, before and during which other work.

        before  null for a stage without a choice: a quantization, a fixed number, or one thread.
        """
        during = self._stage.usage()
        if during is None:
            return {"configured": self._configured, "others": NOT_KNOWN}
        return {
            "configured": self._configured,
            "usable": round(during.cores, 2),
            "before": None if self._before is None else self._before.entries(),
            "during": during.entries(),
            "busy": said_busy(during) or None,
        }
