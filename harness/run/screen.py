"""Progress of a sweep: bars for it and for running cells on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.cell.plan import CellPlan
from harness.run.diary import Doing, Job, Settled
from harness.run.events import (
    Advanced,
    Event,
    Failed,
    Finished,
    Planned,
    Queued,
    Resumed,
    Started,
    Waiting,
)
from harness.run.tables import memory_line, memory_table

if TYPE_CHECKING:
    from rich.console import Console

HERE = "here"  # the bar of cells that run in turn


def open_console(stderr: bool = False, quiet: bool = False) -> Console:
    """The console of a command, on standard output or error."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Without a terminal, rich assumes 80 columns, which would wrap the tables in logs.
    width = None if stream.isatty() else 120
    # rich would turn ":x:" in a name into an emoji.
    return Console(stderr=stderr, width=width, emoji=False, quiet=quiet)


class Screen:
    """Shows a sweep whose cells run in this process's turn (cell, show) or elsewhere (follow,
    settled): bars on a terminal, a line per stage or cell otherwise. Failures have lines at once.
    """

    def __init__(self, console: Console, plans: Sequence[CellPlan]) -> None:
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
        # Cells that are done, and those with failures among them.
        self._cells, self._failed = sum(not plan.todo for plan in plans), 0
        self._fails = False  # the current cell
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
        self._sweep = self._bars.add_task(self._progress(self._cells), total=total)
        self._lanes: dict[str, Any] = {}  # a bar for each process that runs cells
        self._at: dict[str, tuple[object, str]] = {}  # what each bar shows

    def __enter__(self) -> None:
        self._bars.start()

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def cell(self, number: int, name: str, plan: CellPlan) -> None:
        """A cell begins, and the one before it is done."""
        self._settle(number - 1)
        self._name = f"[{number}/{self._count}] {name}"
        self._left, self._model = len(plan.todo), plan.identity.model

    def show(self, event: Event) -> None:
        """Show an event of the current cell."""
        if isinstance(event, Started):
            self._lane(HERE, self._name, event.stage)
        elif isinstance(event, Waiting):
            self._print(f"waiting: {event.who} works on {event.what}")
        elif isinstance(event, Queued):
            self._print(f"{event.stage} waits for {event.device}, on which another cell runs")
        elif isinstance(event, Planned):
            self._show_memory(event)
        elif isinstance(event, Resumed):
            self._print(
                f"{event.stage} continues after {event.blocks} of {event.total} blocks that an "
                f"interrupted run finished, which saves {duration(event.seconds)}"
            )
        elif isinstance(event, Advanced):
            self._lane(HERE, self._name, event.stage, event.what, event.done, event.total)
        elif isinstance(event, Finished) and not event.cached:
            self._advance(f"{event.stage} {event.seconds:.1f} s")
        elif isinstance(event, Failed):
            self._fails = True
            self._advance(f"{event.stage} failed ({event.type}): {event.message}", style="red")

    def follow(self, doing: Mapping[str, Doing]) -> None:
        """Show what processes elsewhere do now, by their names."""
        for who in self._lanes.keys() - doing.keys():
            self._bars.update(self._lanes[who], visible=False)
        for who, now in doing.items():
            if now.cell is None:
                if who in self._lanes:
                    self._bars.update(self._lanes[who], visible=False)
                continue
            label = f"[{now.cell[0]}/{self._count}] {now.cell[1]}"
            what = f"waits for {now.waits}" if now.waits else now.what
            self._lane(who, label, now.stage, what, now.done, now.total)

    def settled(self, job: Job, what: Settled) -> None:
        """A cell is settled elsewhere."""
        self._name, self._left = f"[{job.number}/{self._count}] {job.name}", 0
        self._cells += 1
        self._failed += bool(what.failures)
        self._bars.update(self._sweep, description=self._progress(self._cells))
        self._bars.advance(self._sweep, len(job.todo))
        said = [f"{stage} {seconds:.1f} s" for stage, seconds in what.finished.items()]
        said += [f"{stage} done meanwhile" for stage in what.cached if stage in job.todo]
        if said and not self._console.is_terminal:
            self._print(f"{', '.join(said)} ({what.runner})")
        for stage, kind, message in what.failures:
            self._print(f"{stage} failed ({kind}): {message}", style="red")

    def say(self, text: str) -> None:
        """Print a line on the sweep."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _lane(
        self,
        who: str,
        label: str,
        stage: str,
        what: str = "",
        done: int = 0,
        total: int | None = None,
    ) -> None:
        """Show a running cell in the bar of `who`."""
        if who not in self._lanes:
            self._lanes[who] = self._bars.add_task("", total=None, visible=False)
        task = self._lanes[who]
        if self._at.get(who) != (label, stage):
            self._at[who] = (label, stage)
            self._bars.reset(task, total=None)
        words = f"  {label} {stage}" + f": {what[:40]}" * bool(what)
        self._bars.update(task, description=words, completed=done, total=total, visible=True)

    def _progress(self, cells: int) -> str:
        return f"{cells} of {self._count} cells" + f", {self._failed} failed" * bool(self._failed)

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
        if HERE in self._lanes:
            self._bars.update(self._lanes[HERE], visible=False)
        if not self._console.is_terminal or style:
            self._print(text, style)

    def _print(self, text: str, style: str = "") -> None:
        """Print a line on the current cell; brackets and colons in names are not markup."""
        from rich.text import Text

        self._console.print(Text.assemble(f"{self._name} ", (text, style)), soft_wrap=True)

    def _settle(self, cells: int) -> None:
        """Count a cell, and the stages that a failed quantization skipped, as done."""
        self._bars.advance(self._sweep, max(0, self._left))
        self._failed += self._fails
        self._left, self._fails = 0, False
        self._bars.update(self._sweep, description=self._progress(cells))


def duration(seconds: float) -> str:
    """ "2.1 s", "3 min", "1 h 20 min"."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
