"""What `bitsweep run` does with composed cells: plan, run, table, report, tracking."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell.cells import PendingCell, ResolvedCell
from harness.cell.plan import CellPlan
from harness.cell.resolve import Known, resolve
from harness.config.schema import Cell, as_yaml
from harness.data import hub
from harness.errors import BitsweepError, StoreError, Unavailable
from harness.launchers.choosing import Chosen, chosen, is_chosen, runs_elsewhere
from harness.records.absent import keep_absent
from harness.records.record import NOT_AVAILABLE, Record
from harness.records.store import (
    as_named,
    file_name,
    read_record,
    require_place,
    unique_name,
    write_atomically,
)
from harness.records.temporary import remove_abandoned
from harness.report.held import of_earlier, remove_others, said_of_replaced
from harness.report.latex import LATEX, Latex
from harness.run.diary import Diary
from harness.run.hashing import hashing_shown
from harness.run.planned import check_place, look_up, print_plan, stages_said
from harness.run.recording import absent_records, roots_of
from harness.run.screen import open_console
from harness.run.sweep import Outcome, jobs_of, run_sweep
from harness.suites.base import Suite

if TYPE_CHECKING:
    from rich.console import Console

OK, FAILED = 0, 1


def resolve_all(cells: Sequence[Cell], elsewhere: bool = False) -> list[ResolvedCell | PendingCell]:
    """Resolve every composed cell. Nothing is downloaded; the hub is only asked what it has.

    elsewhere  the cells run on other machines.

    Cells whose model cannot be had are pending with the reason, and in an experiment that
    regenerates published tables also those without their texts or data of tasks. Raises Unavailable
    if all are, except for such an experiment; MissingData in any other.
    """
    hub.forget()
    known: Known = {}
    found = [_resolved(cell, False, elsewhere, known) for cell in cells]
    return _some_available(cells, found)


def fetch_all(cells: Sequence[Cell], elsewhere: bool = False) -> list[ResolvedCell | PendingCell]:
    """Resolve every composed cell and download the models that are not here.

    All cells are checked before the first download. Pending cells have a reason. Raises what
    resolve_all does.
    """
    fetched: list[ResolvedCell | PendingCell] = []
    known: Known = {}
    for cell, found in zip(cells, resolve_all(cells, elsewhere), strict=True):
        if isinstance(found, PendingCell) and found.reason is None:
            found = _resolved(cell, True, elsewhere, known)
        fetched.append(found)
    return _some_available(cells, fetched)


def _resolved(
    cell: Cell, download: bool, elsewhere: bool, known: Known
) -> ResolvedCell | PendingCell:
    with hashing_shown(open_console(stderr=True)):
        return resolve(
            cell.config,
            cell.folder,
            download,
            or_reason=True,
            without_data=bool(cell.published),
            elsewhere=elsewhere,
            known=known,
        )


def _some_available(
    cells: Sequence[Cell], found: list[ResolvedCell | PendingCell]
) -> list[ResolvedCell | PendingCell]:
    """The same cells; Unavailable if none can be had, unless their tables are published ones."""
    reasons = [each.reason for each in found if isinstance(each, PendingCell) and each.reason]
    if len(reasons) == len(found) and not any(cell.published for cell in cells):
        first, *others = dict.fromkeys(reasons)
        alike = f" The same goes for {len(others)} more of its models." * bool(others)
        raise Unavailable(f"{first}{alike}")
    return found


@dataclass(frozen=True)
class Ran:
    """The result of a run.

    status   exit status: 0, 1 if anything failed, or that of a signal.
    records  of all cells, new, cached and failed, in the order of cells and their stages.
    trouble  why there is no report; None if there is one, or nothing to report.
    """

    status: int
    records: list[Record]
    outcome: Outcome
    trouble: str | None


def run(cells: Sequence[Cell], config_dir: Path | None = None) -> int:
    """Run cells as `run_cells` does; return the exit status."""
    return run_cells(cells, config_dir).status


def run_cells(cells: Sequence[Cell], config_dir: Path | None = None, quiet: bool = False) -> Ran:
    """Resolve the cells, run their open stages, then write the table, the report and tracking.

    quiet  print nothing; the report is written all the same.
    """
    launcher = chosen(cells, config_dir)
    every = [look_up(cell) for cell in fetch_all(cells, runs_elsewhere(launcher))]
    lacking = [plan.cell for plan in every if plan.cell.absent]
    cells = [c for c, plan in zip(cells, every, strict=True) if isinstance(plan, CellPlan)]
    plans = [plan for plan in every if isinstance(plan, CellPlan)]
    check_place(plans)
    choices = every[0].cell.choices
    results, name = choices.results, choices.name
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{file_name(name)}-{os.getpid()}"
    diary = Diary(results / "runs" / stamp)
    screen = open_console(stderr=True, quiet=quiet)
    print_plan(every, screen)
    remove_abandoned(results)
    if any(plan.todo for plan in plans):
        configurations = (
            roots_of(plan.cell).shown(as_yaml(cell))
            for cell, plan in zip(cells, plans, strict=True)
        )
        write_atomically(diary.folder / "cells.yaml", "---\n".join(configurations))
        diary.begin(name, jobs_of(plans))
        outcome = _carry_out(cells, plans, diary, screen, config_dir, launcher)
    else:
        outcome = Outcome(cached=sum(len(plan.stages) for plan in plans))
    status, trouble = max(_status(outcome), _status_without(lacking)), None
    records: list[Record] = []
    try:
        absent = [record for cell in lacking for record in absent_records(cell)]
        keep_absent(results, absent)
        found = _records(plans, outcome)
        records = [record for each in found for record in each] + absent
        if absent or any(record.metrics or record.status == "ok" for record in records):
            folder = results / "reports" / unique_name(name)
            _require_place(folder, results)
            whole = not (outcome.interrupted or outcome.stopped)
            suites = suites_of(plans)
            console = open_console(quiet=quiet)
            earlier, said = of_earlier(results, folder, records)
            every_record = [*records, *earlier]
            report(every_record, folder, name, suites, causes=not whole, console=console)
            for sentence in said:
                console.print(sentence, highlight=False, markup=False, soft_wrap=True)
            if plans:
                status = max(status, _track(plans, found, every_record, folder, screen))
    except BitsweepError as error:
        status, trouble = max(status, FAILED), f"no report: {error}"
    finally:  # the summary of the stages is printed even if the report failed
        lacked = sum(len(cell.absent) for cell in lacking)
        _summary(outcome, lacked, diary.folder, screen, trouble)
    return Ran(status, records, outcome, trouble)


def _require_place(folder: Path, results: Path) -> None:
    """Raise StoreError if the report cannot be written; the run's own step would repeat all."""
    try:
        require_place(folder)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: `bitsweep report {shlex.quote(str(results))} --out "
            "FOLDER` writes one elsewhere."
        ) from error


def suites_of(plans: Sequence[CellPlan]) -> dict[str, Suite]:
    """The suites of all cells by name, for the report."""
    chosen = (each for plan in plans for each in plan.cell.choices.suites)
    return {each.suite.name: each.suite for each in chosen}


def report(
    records: list[Record],
    folder: Path,
    title: str,
    suites: Mapping[str, Suite],
    causes: bool = True,
    own_folder: bool = True,
    console: Console | None = None,
    latex: Latex = LATEX,
) -> None:
    """Write the report; print its table and its path.

    suites      by name, for the columns of their figures. A suite that is missing here is looked
                up among the built-in ones.
    causes      print the causes of failures below the table.
    own_folder  the folder is for reports alone, so files of an earlier report are removed.
    console     to print to; None: standard output.
    latex       how its tables in LaTeX are set.
    """
    from harness.report.build import make_report, write_report
    from harness.report.tables import on_console

    replaced = said_of_replaced(records, folder)
    made = make_report(records, title, suites, latex)
    files = write_report(made, folder)
    if own_folder:
        remove_others(folder, files)
    console = console or open_console()
    console.print(on_console(made.tables, console.width, causes))
    said = f"\nreport: {_shown(files[0])} (tables, plots, CSV and {files[1].name} beside it)"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    if replaced:
        console.print(replaced, highlight=False, markup=False, soft_wrap=True)


def _carry_out(
    cells: Sequence[Cell],
    plans: Sequence[CellPlan],
    diary: Diary,
    screen: Console,
    config_dir: Path | None,
    launcher: Chosen | None,
) -> Outcome:
    """Run the plans in this process, by workers, or through a launcher plugin of Hydra."""
    if launcher is not None:
        from harness.run.launched import run_launched

        return run_launched(launcher, cells, plans, diary, screen, config_dir)
    if is_chosen(cells):
        from harness.launchers.plugin import run_with_launcher

        return run_with_launcher(cells, plans, config_dir)
    return run_sweep(list(plans), diary, screen)


def _records(plans: Sequence[CellPlan], outcome: Outcome) -> list[list[Record]]:
    """The records of each cell; of one that ran elsewhere, under the keys that it had there."""
    every = []
    for number, plan in enumerate(plans):
        elsewhere, found = outcome.records.get(number, {}), []
        for stage in plan.stages:
            record = plan.cell.find(stage)
            if stage in elsewhere:
                path = plan.cell.store.root / elsewhere[stage]
                record = as_named(read_record(path), plan.identity)
            found += [] if record is None else [record]
        every.append(found)
    return every


def _track(
    plans: Sequence[CellPlan],
    found: Sequence[list[Record]],
    records: Sequence[Record],
    folder: Path,
    screen: Console,
) -> int:
    """Pass the records of cells that changed to the tracker; its errors cost no results.

    found    of each plan.
    records  of the whole experiment, for its page.
    """
    choices = plans[0].cell.choices
    if choices.tracker.name == "none":
        return OK
    from harness.tracking_page import track

    figures = sorted((folder / "plots").glob("*.png"))
    place = (choices.tracker, choices.results, choices.name)
    cells = [each for each in found if each]
    done = track(cells, records, figures, *place, suites_of(plans))
    for sentence in done.trouble:
        screen.print(sentence, style="red", highlight=False, markup=False, soft_wrap=True)
    return FAILED if done.trouble else OK


def _status_without(lacking: Sequence[ResolvedCell | PendingCell]) -> int:
    """FAILED for what cannot be had now; OK for a model whose file says that nobody can have it."""
    return FAILED if any(cell.model.config.unavailable is None for cell in lacking) else OK


def _status(outcome: Outcome) -> int:
    if outcome.interrupted:
        return outcome.interrupted
    return FAILED if outcome.failures or outcome.stopped else OK


def _summary(
    outcome: Outcome, lacked: int, diary: Path, screen: Console, trouble: str | None
) -> None:
    """Print what was run, what failed, what could not be had, and what to do next."""
    lines = [
        f"{stages_said(outcome.finished)} run, {outcome.cached} found finished, "
        f"{len(outcome.failures)} failed" + f", {lacked} {NOT_AVAILABLE}" * bool(lacked)
    ]
    alike: dict[tuple[str, str], list[str]] = {}
    for name, each in outcome.failures:
        alike.setdefault((each.stage, each.message), []).append(name)
    lines += [
        f"  {', '.join(names)}: {stage} failed: {cause}" for (stage, cause), names in alike.items()
    ]
    if outcome.failures:
        lines.append(f"logs: {_shown(diary)}; run the same command again to retry what failed")
    if outcome.stopped:
        lines.append(f"stopped: {outcome.stopped}")
    if trouble:
        lines.append(trouble)
    if outcome.interrupted:
        lines.append(
            "interrupted: finished stages are kept; run the same command again to continue"
        )
    for line in lines:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def _shown(path: Path) -> str:
    """A path, relative to the working directory if it is below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
