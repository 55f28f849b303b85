"""Run the cells of a plan one after another, collecting their failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.cell.plan import CellPlan
from harness.errors import StoreError
from harness.records.store import cell_name
from harness.run.diary import DISK_TROUBLE, Diary, Job, Runner, Settled
from harness.run.events import Event, Failed, Finished
from harness.run.process import prepare, run_in_process, warm_up
from harness.run.screen import Screen
from harness.run.signals import exit_status
from harness.run.tables import calibration_texts

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Outcome:
    """The result of a sweep.

    stopped      one sentence on why the sweep ended early; None if it did not.
    interrupted  exit status of the signal that ended it; 0 for none.
    records      of cells that ran elsewhere: paths below the results folder, by the cell's place
                 among the plans and by stage.
    """

    finished: int = 0
    cached: int = 0
    failures: list[tuple[str, Failed]] = field(default_factory=list)
    stopped: str | None = None
    interrupted: int = 0
    records: dict[int, dict[str, str]] = field(default_factory=dict)


def jobs_of(plans: Sequence[CellPlan]) -> list[Job]:
    """The cells of a sweep for its diary, in order; those of one name with their calibrations."""
    names = [cell_name(plan.identity) for plan in plans]
    count = Counter(names)
    jobs = []
    for number, (plan, name, text) in enumerate(
        zip(plans, names, calibration_texts(plans), strict=True), start=1
    ):
        told = f" ({text})" * (count[name] > 1 and plan.cell.choices.calibration is not None)
        jobs.append(Job(number, name + told, tuple(plan.todo)))
    return jobs


def run_sweep(plans: list[CellPlan], diary: Diary, console: Console) -> Outcome:
    """Run every stage that has no record yet, each cell in its own process.

    A failed cell does not stop the others; a full disk, Ctrl-C or SIGTERM does.
    """
    outcome = Outcome()
    prepare(plans)
    screen = Screen(console, plans)
    with screen, Runner(diary, "here") as runner:
        if any(plan.todo for plan in plans):
            try:
                warm_up(_prepare_report)
            except KeyboardInterrupt as error:
                outcome.interrupted = exit_status(error)
                return outcome
        for job, plan in zip(jobs_of(plans), plans, strict=True):
            screen.cell(job.number, job.name, plan)
            if not plan.todo:
                outcome.cached += len(plan.stages)
                continue
            runner.begins(job.number, job.name)
            heard = _Ear(outcome, job.name, screen, runner)
            try:
                run_in_process(plan.cell, heard, diary.log(job))
                if heard.disk_trouble:
                    plan.cell.store.check_writable()
                diary.settle(job.number, heard.settled)
            except StoreError as error:
                outcome.stopped = str(error)
                break
            except KeyboardInterrupt as error:
                outcome.interrupted = exit_status(error)
                break
            runner.ends()
    return outcome


def _prepare_report() -> None:
    """Import what the report at the end needs, while the libraries of the cells are imported.

    Both take seconds on a core of their own, and nothing is measured yet: later it would disturb.
    """
    import harness.report.build
    from harness.report.plot_style import warm_up as warm_up_plots

    assert harness.report.build
    warm_up_plots()


class _Ear:
    """Listens to one cell."""

    def __init__(self, outcome: Outcome, name: str, screen: Screen, runner: Runner) -> None:
        self._outcome, self._name, self._screen, self._runner = outcome, name, screen, runner
        self.settled = Settled(runner=runner.who)
        self.disk_trouble = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Finished) and event.cached:
            self._outcome.cached += 1
        elif isinstance(event, Finished):
            self._outcome.finished += 1
        elif isinstance(event, Failed):
            self._outcome.failures.append((self._name, event))
            self.disk_trouble |= event.type in DISK_TROUBLE
        self.settled.hear(event)
        self._runner.hear(event)
        self._screen.show(event)
