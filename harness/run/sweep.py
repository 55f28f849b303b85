"""Run the cells of a plan one after another, collecting their failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell.plan import CellPlan
from harness.errors import StoreError
from harness.records.store import cell_name
from harness.run.events import Event, Failed, Finished
from harness.run.process import prepare, run_in_process
from harness.run.screen import Screen
from harness.run.signals import exit_status

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Outcome:
    """The result of a sweep.

    stopped      one sentence on why the sweep ended early; None if it did not.
    interrupted  exit status of the signal that ended it; 0 for none.
    """

    finished: int = 0
    cached: int = 0
    failures: list[tuple[str, Failed]] = field(default_factory=list)
    stopped: str | None = None
    interrupted: int = 0


def run_sweep(plans: list[CellPlan], logs: Path, console: Console) -> Outcome:
    """Run every stage that has no record yet, each cell in its own process.

    A failed cell does not stop the others; a full disk, Ctrl-C or SIGTERM does.
    """
    outcome = Outcome()
    prepare(plans)
    screen = Screen(console, plans)
    with screen:
        for number, plan in enumerate(plans, start=1):
            name = cell_name(plan.identity)
            screen.cell(number, name, plan)
            if not plan.todo:
                outcome.cached += len(plan.stages)
                continue
            heard = _Ear(outcome, name, screen)
            try:
                run_in_process(plan.cell, heard, logs / f"{number:03d}-{name[:80]}.log")
                if heard.disk_trouble:
                    plan.cell.store.check_writable()
            except StoreError as error:
                outcome.stopped = str(error)
                break
            except KeyboardInterrupt as error:
                outcome.interrupted = exit_status(error)
                break
    return outcome


class _Ear:
    """Listens to one cell."""

    def __init__(self, outcome: Outcome, name: str, screen: Screen) -> None:
        self._outcome, self._name, self._screen = outcome, name, screen
        self.disk_trouble = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Finished) and event.cached:
            self._outcome.cached += 1
        elif isinstance(event, Finished):
            self._outcome.finished += 1
        elif isinstance(event, Failed):
            self._outcome.failures.append((self._name, event))
            self.disk_trouble |= event.type in ("StoreError", "ArtifactError", "OSError")
        self._screen.show(event)
