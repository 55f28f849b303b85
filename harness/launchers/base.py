"""The interface of launchers: a spec of how workers (harness.run.worker) are started and watched.

A launcher is one module that ends in `LAUNCHER = Launcher(...)`, and a file of conf/hydra/launcher
that names the module and sets its options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.errors import BitsweepError


class LaunchError(BitsweepError):
    """Workers cannot be started, or not any more."""


class Workers(Protocol):
    """The workers of one sweep, by number from 0."""

    def ended(self) -> dict[int, str]:
        """Those that run no more and wait in no queue, each with the reason ("" for none known).

        Raises LaunchError if none can be started again.
        """
        ...

    def again(self, number: int) -> None:
        """Start one that has ended again. Raises LaunchError."""
        ...

    def cancel(self) -> None:
        """End all of them."""
        ...


@dataclass(frozen=True)
class Launcher:
    """A launcher.

    name       for messages.
    extra      the extra of the distribution whose packages it needs (harness.extras).
    options    its settings: a plain dataclass with types that OmegaConf supports, which has
               `workers`, how many there are at most.
    start      start(folder of the sweep, number of workers, options, GPUs that a cell needs at
               most, 0 on processors); raises LaunchError.
    elsewhere  whether cells run on other machines: what this one has says nothing of theirs.
    """

    name: str
    extra: str
    options: type
    start: Callable[[Path, int, Any, int], Workers]
    elsewhere: bool = True


def gpus_of_worker(asked: float | None, needed: int) -> float:
    """The GPUs of a worker: as configured, or as many as a cell needs.

    Raises LaunchError for fewer than a model is spread over.
    """
    if asked is None:
        return needed
    if asked < needed > 1:
        raise LaunchError(
            f"hydra.launcher.gpus={asked:g} is fewer than the {needed} GPUs over which a cell "
            "spreads its model (runtime.devices): leave it null, or spread the model over fewer."
        )
    return asked
