"""Progress of a sweep: two bars on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from harness.cell.plan import CellPlan
from harness.run.events import Advanced, Event, Failed, Finished, Planned, Resumed, Started, Waiting
from harness.run.tables import memory_line, memory_table

if TYPE_CHECKING:
    from rich.console import Console


def open_console(stderr: bool = False, quiet: bool = False) -> Console:
    """The console of a command, on standard output or error."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Without a terminal, rich assumes 80 columns, which would wrap the tables in logs.
    width = None if stream.isatty() else 120
    # rich would turn ":x:" in a name into an emoji.
    return Console(stderr=stderr, width=width, emoji=False, quiet=quiet)


class Screen:
    """Shows the events of cells as two progress bars, or as one line per stage."""

    def __init__(self, console: Console, plans: list[CellPlan]) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console, self._count = console, len(plans)
        self._name, self._left, self._model = "", 0, ""
        self._shown: set[tuple[str, object]] = set()  # kinds of memory plans
        self._bars = Progress(
            TextColumn("{task.description}", justify="left", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        total = sum(len(plan.todo) for plan in plans)
        self._sweep = self._bars.add_task("sweep", total=total)
        self._stage = self._bars.add_task("", total=None, visible=False)
        self._began = time.monotonic()

    def __enter__(self) -> None:
        self._bars.start()

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def cell(self, number: int, name: str, plan: CellPlan) -> None:
        """A cell begins."""
        self._settle()
        self._name = f"[{number}/{self._count}] {name}"
        self._left, self._model = len(plan.todo), plan.identity.model
        self._bars.update(self._sweep, description=self._name)

    def show(self, event: Event) -> None:
        """Show an event of the current cell."""
        if isinstance(event, Started):
            self._bars.reset(self._stage, total=None, description=f"  {event.stage}", visible=True)
        elif isinstance(event, Waiting):
            self._print(f"waiting: {event.who} works on {event.what}")
        elif isinstance(event, Planned):
            self._show_memory(event)
        elif isinstance(event, Resumed):
            self._print(
                f"{event.stage} continues after {event.blocks} of {event.total} blocks that an "
                f"interrupted run finished, which saves {_duration(event.seconds)}"
            )
        elif isinstance(event, Advanced):
            self._bars.update(
                self._stage,
                completed=event.done,
                total=event.total,
                description=f"  {event.stage}: {event.what[:40]}",
            )
        elif isinstance(event, Finished) and not event.cached:
            self._advance(f"{event.stage} {event.seconds:.1f} s")
        elif isinstance(event, Failed):
            # The cause is printed once, in the summary at the end.
            self._advance(f"{event.stage} failed ({event.type})", style="red")

    def _show_memory(self, event: Planned) -> None:
        """Print the memory plan: as a table for the first cell of its kind, then as a line."""
        kind = tuple(row[:2] for row in event.rows)
        if (self._model, kind) not in self._shown:
            self._shown.add((self._model, kind))
            self._console.print(memory_table(f"memory of {self._name}", event.rows))
        else:
            self._print(memory_line(event.rows))

    def _advance(self, text: str, style: str = "") -> None:
        self._left -= 1
        self._bars.advance(self._sweep)
        self._bars.update(self._stage, visible=False)
        if not self._console.is_terminal or style:
            self._print(text, style)

    def _print(self, text: str, style: str = "") -> None:
        """Print a line on the current cell; brackets and colons in names are not markup."""
        from rich.text import Text

        self._console.print(Text.assemble(f"{self._name} ", (text, style)), soft_wrap=True)

    def _settle(self) -> None:
        """Count the stages that a failed quantization skipped as done."""
        self._bars.advance(self._sweep, max(0, self._left))
        self._left = 0


def _duration(seconds: float) -> str:
    """ "2.1 s", "3 min", "1 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
