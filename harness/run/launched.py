"""Run the cells of a sweep by workers that a launcher starts; follow them until all are settled.

The workers share the results folder with this process and need nothing else of it: if it is killed
they go on, and the same command finds what they did.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell.plan import CellPlan
from harness.config.kept import as_json
from harness.config.schema import Cell
from harness.errors import StoreError
from harness.launchers.base import LaunchError, Workers
from harness.launchers.choosing import Chosen
from harness.records.store import write_atomically
from harness.run.diary import STARTER, Diary, Job, Runner, Settled
from harness.run.events import Failed
from harness.run.screen import Screen
from harness.run.signals import exit_status
from harness.run.sweep import Outcome, jobs_of
from harness.run.worker import CONFIG_DIR, JOBS

if TYPE_CHECKING:
    from rich.console import Console

POLL_SECONDS = 0.3
DEATHS = 3  # of each worker on average, without a cell settled in between


def run_launched(
    chosen: Chosen,
    cells: Sequence[Cell],
    plans: Sequence[CellPlan],
    diary: Diary,
    console: Console,
    config_dir: Path | None,
) -> Outcome:
    """Start workers, no more than there are cells to run, and wait until every cell is settled."""
    outcome = Outcome(cached=sum(len(p.stages) - len(p.todo) for p in plans))
    jobs = [job for job in jobs_of(plans) if job.todo]
    work = [cell for cell, plan in zip(cells, plans, strict=True) if plan.todo]
    if config_dir is not None:
        write_atomically(diary.folder / CONFIG_DIR, str(config_dir.absolute()))
    write_atomically(diary.folder / JOBS, as_json(work))
    count = min(chosen.options.workers, len(jobs))
    screen = Screen(console, plans)
    try:
        gpus = gpus_needed(plans)
        workers = chosen.launcher.start(diary.folder, count, chosen.options, gpus)
        following = _Following(diary, jobs, workers, count, screen)
        try:
            with screen, Runner(diary, STARTER):
                following.run()
        finally:
            if not following.complete:
                workers.cancel()
    except (LaunchError, StoreError) as error:
        outcome.stopped = str(error)
    except KeyboardInterrupt as error:
        outcome.interrupted = exit_status(error)
    _count(outcome, jobs, diary.settled())
    _say_starts(diary, screen)
    return outcome


def gpus_needed(plans: Sequence[CellPlan]) -> int:
    """The most GPUs that a cell to run needs at once: every worker may take any cell."""
    return max(plan.cell.devices.gpus for plan in plans if plan.todo)


class _Following:
    """Follows the workers of one sweep."""

    def __init__(
        self, diary: Diary, jobs: Sequence[Job], workers: Workers, count: int, screen: Screen
    ) -> None:
        self._diary, self._workers, self._screen = diary, workers, screen
        self._jobs = {job.number: job for job in jobs}
        self._count = count
        self._settled: dict[int, Settled] = {}
        self._deaths = 0

    @property
    def complete(self) -> bool:
        """Whether every cell is settled."""
        return len(self._settled) == len(self._jobs)

    def run(self) -> None:
        """Return when all cells are settled. Raises LaunchError if the workers come to an end."""
        while True:
            # Asked first: a worker that ended had noted all it did.
            trouble: LaunchError | None = None
            ended: dict[int, str] = {}
            try:
                ended = self._workers.ended()
            except LaunchError as error:
                trouble = error
            self._look()
            if self.complete:
                return
            if trouble is not None:
                raise trouble
            for number, why in ended.items():
                self._replace(number, why)
            time.sleep(POLL_SECONDS)

    def _look(self) -> None:
        found = self._diary.settled(self._settled)
        for number in sorted(found.keys() - self._settled.keys()):
            self._deaths = 0
            self._screen.settled(self._jobs[number], found[number])
        self._settled = found
        self._screen.follow({who: doing for who, (doing, _) in self._diary.runners().items()})

    def _replace(self, number: int, why: str) -> None:
        self._deaths += 1
        if self._deaths > DEATHS * self._count:
            raise LaunchError(
                f"the workers end without finishing a cell ({why or 'for no reason they gave'}): "
                f"their logs are in {self._diary.folder / 'jobs'}; finished stages are kept."
            )
        self._screen.say(f"worker {number + 1} ended ({why or 'no reason given'}): started again")
        self._workers.again(number)


def _count(outcome: Outcome, jobs: Sequence[Job], settled: dict[int, Settled]) -> None:
    """Add what became of the cells to the outcome."""
    for job in jobs:
        found = settled.get(job.number)
        if found is None:
            continue
        outcome.finished += len(found.finished)
        outcome.cached += sum(stage in job.todo for stage in found.cached)
        outcome.failures += [(job.name, Failed(*each)) for each in found.failures]
        outcome.records[job.number - 1] = found.records


def _say_starts(diary: Diary, screen: Screen) -> None:
    """What the starts of the interpreters cost, which come once a worker."""
    born = {who: each for who, (each, _) in diary.runners().items() if each.born is not None}
    if not born:
        return
    seconds = sorted({round(each.born, 1) for each in born.values() if each.born is not None})
    cells = sum(each.cells for each in born.values())
    span = " to ".join(f"{each:.1f}" for each in dict.fromkeys((seconds[0], seconds[-1]))) + " s"
    screen.say(
        f"{len(born)} worker{'s' * (len(born) > 1)}, each started once in {span} (interpreter and "
        f"libraries), for {cells} cell{'s' * (cells != 1)}"
    )
