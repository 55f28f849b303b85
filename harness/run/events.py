"""What a cell tells while it works; plain values that travel between processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """Another process works on the cell; nothing of this one's is done meanwhile."""

    who: str


@dataclass(frozen=True)
class Started:
    """A stage begins."""

    stage: str


@dataclass(frozen=True)
class Planned:
    """What a stage will hold in memory: rows of what, where (device, host, disk) and bytes."""

    stage: str
    rows: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Resumed:
    """A stage goes on where an interrupted run stopped, after so many finished blocks of all.

    seconds  what those blocks took that is not done again.
    """

    stage: str
    blocks: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Advanced:
    """A stage has done so many of its steps; `what` is the step (a layer, a text, a task)."""

    stage: str
    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Finished:
    """A stage has its record. cached: it had it already."""

    stage: str
    seconds: float
    cached: bool = False


@dataclass(frozen=True)
class Failed:
    """A stage has no figures; the record says so too unless it could not be written."""

    stage: str
    type: str
    message: str


@dataclass(frozen=True)
class Broken:
    """The cell could not go on, outside of any stage."""

    type: str
    message: str


Event = Waiting | Started | Planned | Resumed | Advanced | Finished | Failed | Broken
Listener = Callable[[Event], None]
