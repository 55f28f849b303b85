"""A worker of a sweep: one interpreter that takes cell after cell, beside others on any machine.

Workers share nothing but the results folder. Each claims a cell, runs it as a sweep on one machine
would, and notes what became of it. A worker that is killed gives its claim back, and another one,
or its own successor, goes on with the cell at the stage, and at the block, where it was.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cell.cells import PendingCell, ResolvedCell
from harness.cell.plan import CellPlan, plan_cell
from harness.cell.resolve import resolve
from harness.config.kept import from_json
from harness.config.schema import Cell
from harness.errors import BitsweepError, MissingData, StoreError
from harness.records.leases import Lease
from harness.records.record import QUANTIZATION
from harness.run.diary import DISK_TROUBLE, Diary, Job, Runner, records_of
from harness.run.events import Event, Failed, Finished, Waiting
from harness.run.process import prepare, run_in_process, warm_up
from harness.run.signals import as_interrupts
from quant.errors import QuantizationError

JOBS = "jobs.json"
CONFIG_DIR = "config-dir"  # a file with the path of the user's configuration folder
POLL_SECONDS = 1.0


class _Elsewhere(Exception):
    """Another process works on the cell, or on something that it shares with another cell."""


def work(folder: str, number: int, of: int) -> None:
    """Run cells of the sweep in `folder` until all are settled. Called in a process of its own.

    number, of  which of the sweep's workers this is, from 0: it begins at its own share of the
                cells, so that few claims meet.

    SIGTERM, which a cluster sends to preempt, ends it at once; the cell is gone on with at the last
    finished block.
    """
    # Processor time until here: Ray starts interpreters before it has work for them.
    started, began = time.monotonic(), sum(os.times()[:2])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
    diary = Diary(Path(folder))
    found = diary.sweep()
    if found is None:
        raise StoreError(f"{folder}/sweep.json cannot be read: run the sweep's command again.")
    jobs = [job for job in found[2] if job.todo]
    own = diary.folder / CONFIG_DIR
    extra = Path(own.read_text(encoding="utf-8")) if own.exists() else None
    cells = from_json((diary.folder / JOBS).read_text(encoding="utf-8"), extra)
    first = len(jobs) * number // of
    with as_interrupts():
        _prepare(cells)
        warm_up()
        born = began + time.monotonic() - started
        with Runner(diary, f"worker-{number + 1:03d}", born=born) as runner:
            mine = [*zip(jobs, cells, strict=True)]
            _Worker(diary, runner).run([*mine[first:], *mine[:first]])


def _prepare(cells: Sequence[Cell]) -> None:
    """Have the fork server import what these cells need; cells of one kind need the same."""
    kinds = {(str(cell.config.method), *cell.config.suite): cell for cell in cells}
    plans: list[CellPlan] = []
    for cell in kinds.values():
        try:
            found = resolve(cell.config, cell.folder, or_reason=True, without_data=True)
        except (BitsweepError, QuantizationError):
            continue  # said where the cell is run
        if isinstance(found, ResolvedCell):
            plans.append(plan_cell(found))
    prepare(plans)


@dataclass
class _Worker:
    diary: Diary
    runner: Runner

    def run(self, mine: Sequence[tuple[Job, Cell]]) -> None:
        """Settle every cell that nobody has settled or claimed."""
        left, passed = deque(mine), 0
        claims: dict[int, Lease] = {}
        while left:
            job, cell = left.popleft()
            if self.diary.has(job.number):
                claims.pop(job.number, None)
                passed = 0
                continue
            # All that are left are others': to wait for one of another sweep is all there is to do.
            patient = passed > len(left)
            claim = claims.setdefault(job.number, self.diary.claim(job.number))
            if claim.take():
                try:
                    if not self.diary.has(job.number) and self._settle(job, cell, patient):
                        passed = -1
                finally:
                    claim.release()
            if not self.diary.has(job.number):
                left.append((job, cell))
            passed += 1
            if passed > len(left) > 0:
                time.sleep(POLL_SECONDS)

    def _settle(self, job: Job, cell: Cell, patient: bool) -> bool:
        """Run a cell and note what became of it; False if it is left, as others have it."""
        settled = self.diary.begun(job.number, self.runner.who)
        self.runner.begins(job.number, job.name)

        def hear(event: Event) -> None:
            if isinstance(event, Waiting) and not patient:
                raise _Elsewhere
            settled.hear(event)
            if isinstance(event, Finished) and not event.cached:
                self.diary.note(job.number, settled)
            self.runner.hear(event)

        try:
            found = resolve(cell.config, cell.folder, download=True, without_data=True)
            if isinstance(found, PendingCell):  # its data are on the other machine alone
                raise MissingData(found.reason or "its model is not on this machine.")
            plan = plan_cell(found)
            if plan.todo:
                run_in_process(found, hear, self.diary.log(job))
                if any(kind in DISK_TROUBLE for _, kind, _ in settled.failures):
                    found.store.check_writable()
            else:
                settled.cached = [each for each in plan.stages if each not in settled.finished]
            settled.records = records_of(found)
        except _Elsewhere:
            self.runner.ends(settled=False)
            return False
        except StoreError:
            raise  # nothing can be written: the cell is as it was
        except (BitsweepError, QuantizationError) as error:
            stage = job.todo[0] if job.todo else QUANTIZATION
            settled.hear(Failed(stage, type(error).__name__, str(error)))
        self.diary.settle(job.number, settled)
        self.runner.ends()
        return True
