"""Events of a running cell: plain values that its process sends to the parent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """Another process holds the lock of `what`, and this one waits for it."""

    who: str
    what: str = "this cell"


@dataclass(frozen=True)
class Queued:
    """A stage waits for its device: it needs it alone, or another has it alone."""

    stage: str
    device: str


@dataclass(frozen=True)
class Started:
    """A stage begins."""

    stage: str


@dataclass(frozen=True)
class Planned:
    """The memory plan of a stage: rows of (what, device | host | disk, bytes)."""

    stage: str
    rows: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Resumed:
    """A stage resumes an interrupted run, after `blocks` of `total` blocks.

    seconds  that the finished blocks took and that are saved now.
    """

    stage: str
    blocks: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Advanced:
    """A stage has finished `done` of `total` steps; `what` names the step (layer, text, task)."""

    stage: str
    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Finished:
    """A stage has its record; `cached` if an earlier run made it."""

    stage: str
    seconds: float
    cached: bool = False


@dataclass(frozen=True)
class Failed:
    """A stage failed; its record says so too, unless it could not be written."""

    stage: str
    type: str
    message: str


@dataclass(frozen=True)
class Broken:
    """The cell stopped with an error outside any stage."""

    type: str
    message: str


Event = Waiting | Queued | Started | Planned | Resumed | Advanced | Finished | Failed | Broken
Listener = Callable[[Event], None]
