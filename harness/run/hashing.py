"""Says that the files of a model are being read, where that takes longer than a moment.

Their hash is a part of every key, and kept (harness.records.hashes): this is seen once a model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.records.hashes import told
from quant.memory.plan import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PATIENCE_SECONDS = 2.0


@contextmanager
def hashing_shown(console: Console) -> Iterator[None]:
    """Inside, a bar on a terminal, and one line elsewhere, for what takes more than two seconds."""
    screen = _Screen(console)
    try:
        with told(screen.tell):
            yield
    finally:
        screen.close()


class _Screen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._what, self._began, self._last = "", 0.0, 0
        self._said: set[str] = set()
        self._bar: Progress | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        """So many bytes of a model are read."""
        now = time.monotonic()
        if what != self._what or done < self._last:
            self.close()
            self._what, self._began = what, now
        self._last = done
        if now - self._began < PATIENCE_SECONDS:
            return
        if what not in self._said:
            self._said.add(what)
            if not self._console.is_terminal:
                self._console.print(
                    f"reading the {size(total)} of {what} to hash them, once",
                    highlight=False, markup=False, soft_wrap=True,
                )  # fmt: skip
        if self._console.is_terminal:
            if self._bar is None:
                self._bar = _bar(self._console)
                self._bar.start()
                self._bar.add_task(f"hashing {what}, once", total=total, completed=done)
            self._bar.update(self._bar.task_ids[0], completed=done)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(console: Console) -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
