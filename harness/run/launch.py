"""What `bitsweep run` does with composed cells: plan, run, table, report, tracking."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell.cells import PendingCell, ResolvedCell
from harness.cell.fits import attention_note
from harness.cell.plan import CellPlan, PendingPlan, plan_cell
from harness.cell.resolve import resolve
from harness.config.schema import Cell, as_yaml
from harness.data import hub
from harness.errors import BitsweepError, Unavailable
from harness.models.model import QuantizedModel, StoredModel
from harness.records.absent import keep_absent
from harness.records.record import NOT_AVAILABLE, QUANTIZATION, Record
from harness.records.store import Store, cell_name, file_name, unique_name, write_atomically
from harness.records.temporary import remove_abandoned
from harness.report.frame import MODEL_DIGITS
from harness.report.held import of_earlier, remove_others, said_of_replaced
from harness.report.latex import LATEX, Latex
from harness.run.detectable import detectable_lines
from harness.run.hashing import hashing_shown
from harness.run.recording import absent_records, roots_of
from harness.run.screen import open_console
from harness.run.sweep import Outcome, run_sweep
from harness.run.tables import memory_table, plan_table
from harness.suites.base import Suite

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

OK, FAILED = 0, 1


def resolve_all(cells: Sequence[Cell]) -> list[ResolvedCell | PendingCell]:
    """Resolve every composed cell. Nothing is downloaded; the hub is only asked what it has.

    Cells whose model cannot be had are pending with the reason, and in an experiment that
    regenerates published tables also those without their texts or data of tasks. Raises Unavailable
    if all are, except for such an experiment; MissingData in any other.
    """
    hub.forget()
    return _some_available(cells, [_resolved(cell, download=False) for cell in cells])


def fetch_all(cells: Sequence[Cell]) -> list[ResolvedCell | PendingCell]:
    """Resolve every composed cell and download the models that are not here.

    All cells are checked before the first download. Pending cells have a reason. Raises what
    resolve_all does.
    """
    fetched: list[ResolvedCell | PendingCell] = []
    for cell, found in zip(cells, resolve_all(cells), strict=True):
        if isinstance(found, PendingCell) and found.reason is None:
            found = _resolved(cell, download=True)
        fetched.append(found)
    return _some_available(cells, fetched)


def _resolved(cell: Cell, download: bool) -> ResolvedCell | PendingCell:
    with hashing_shown(open_console(stderr=True)):
        return resolve(
            cell.config, cell.folder, download, or_reason=True, without_data=bool(cell.published)
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


def show_plan(cells: Sequence[ResolvedCell | PendingCell]) -> None:
    """Print the cells, the state of their stages, and the memory that the open ones need."""
    console = open_console()
    plans = [_look_up(cell) for cell in cells]
    _check_place(plans)
    _print_plan(plans, console)
    for line in detectable_lines(plans):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _show_memory([plan for plan in plans if isinstance(plan, CellPlan)], console)


def _check_place(plans: Sequence[CellPlan | PendingPlan]) -> None:
    """Raise StoreError if the results folder of a cell to run cannot be written."""
    for results in {plan.cell.choices.results for plan in plans if plan.todo}:
        Store(results).check_place()


def _look_up(cell: ResolvedCell | PendingCell) -> CellPlan | PendingPlan:
    return PendingPlan(cell) if isinstance(cell, PendingCell) else plan_cell(cell)


def _show_memory(plans: Sequence[CellPlan], console: Console) -> None:
    """Print the memory plans of quantizations to run: the largest of each model and method."""
    plans = [plan for plan in plans if QUANTIZATION in plan.todo and plan.cell.choices.solves]
    if not plans:
        return  # transformers, which knows the shapes of models, takes seconds to import
    from harness.run.memory import planned_memory
    from quant.errors import QuantizationError
    from quant.memory.plan import WORST

    tables: dict[tuple[str, str], tuple[int, Table]] = {}
    for plan in plans:
        name = cell_name(plan.identity)
        try:
            memory = planned_memory(plan.cell)
        except QuantizationError as error:
            console.print(f"\n{name}: {error}", highlight=False, markup=False, soft_wrap=True)
            continue
        rows = tuple(memory.rows())
        needed = sum(count for what, _, count in rows if what == WORST)
        kind = (plan.identity.model, plan.identity.method)
        if kind not in tables or needed > tables[kind][0]:
            tables[kind] = (needed, memory_table(f"\nmemory of {name}", rows))
    for _, table in tables.values():
        console.print(table)


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
    every = [_look_up(cell) for cell in fetch_all(cells)]
    lacking = [plan.cell for plan in every if plan.cell.absent]
    cells = [c for c, plan in zip(cells, every, strict=True) if isinstance(plan, CellPlan)]
    plans = [plan for plan in every if isinstance(plan, CellPlan)]
    _check_place(plans)
    choices = every[0].cell.choices
    results, name = choices.results, choices.name
    diary = results / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{file_name(name)}-{os.getpid()}"
    screen = open_console(stderr=True, quiet=quiet)
    _print_plan(every, screen)
    remove_abandoned(results)
    if any(plan.todo for plan in plans):
        configurations = (
            roots_of(plan.cell).shown(as_yaml(cell))
            for cell, plan in zip(cells, plans, strict=True)
        )
        write_atomically(diary / "cells.yaml", "---\n".join(configurations))
        outcome = _carry_out(cells, plans, diary, screen, config_dir)
    else:
        outcome = Outcome(cached=sum(len(plan.stages) for plan in plans))
    status, trouble = max(_status(outcome), _status_without(lacking)), None
    records: list[Record] = []
    try:
        absent = [record for cell in lacking for record in absent_records(cell)]
        keep_absent(results, absent)
        records = _records(plans) + absent
        if absent or any(record.metrics or record.status == "ok" for record in records):
            folder = results / "reports" / unique_name(name)
            whole = not (outcome.interrupted or outcome.stopped)
            suites = suites_of(plans)
            console = open_console(quiet=quiet)
            earlier, said = of_earlier(results, folder, records)
            every_record = [*records, *earlier]
            report(every_record, folder, name, suites, causes=not whole, console=console)
            for sentence in said:
                console.print(sentence, highlight=False, markup=False, soft_wrap=True)
            if plans:
                status = max(status, _track(plans, every_record, folder, screen))
    except BitsweepError as error:
        status, trouble = max(status, FAILED), f"no report: {error}"
    finally:  # the summary of the stages is printed even if the report failed
        lacked = sum(len(cell.absent) for cell in lacking)
        _summary(outcome, lacked, diary, screen, trouble)
    return Ran(status, records, outcome, trouble)


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
    from harness.report.build import build_report
    from harness.report.tables import summary_table

    replaced = said_of_replaced(records, folder)
    files = build_report(records, folder, title, suites, latex)
    if own_folder:
        remove_others(folder, files)
    console = console or open_console()
    console.print(summary_table(records, console.width, causes, suites))
    said = f"\nreport: {_shown(files[0])} (tables, plots, CSV and {files[1].name} beside it)"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    if replaced:
        console.print(replaced, highlight=False, markup=False, soft_wrap=True)


def _carry_out(
    cells: Sequence[Cell],
    plans: Sequence[CellPlan],
    diary: Path,
    screen: Console,
    config_dir: Path | None,
) -> Outcome:
    """Run the plans in this process, or through the Hydra launcher plugin that was chosen."""
    from harness.run import launchers as launcher

    if launcher.is_chosen(cells):
        return launcher.run_with_launcher(cells, plans, config_dir)
    return run_sweep(list(plans), diary, screen)


def _records(plans: Sequence[CellPlan]) -> list[Record]:
    found = (plan.cell.find(stage) for plan in plans for stage in plan.stages)
    return [record for record in found if record is not None]


def _track(
    plans: Sequence[CellPlan], records: Sequence[Record], folder: Path, screen: Console
) -> int:
    """Pass the records of cells that changed to the tracker; its errors cost no results.

    records  of the whole experiment, for its page.
    """
    choices = plans[0].cell.choices
    if choices.tracker.name == "none":
        return OK
    from harness.tracking_page import track

    cells = [found for plan in plans if (found := _records([plan]))]
    figures = sorted((folder / "plots").glob("*.png"))
    place = (choices.tracker, choices.results, choices.name)
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
        f"{_stages(outcome.finished)} run, {outcome.cached} found finished, "
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


def _print_plan(plans: Sequence[CellPlan | PendingPlan], console: Console) -> None:
    console.print(plan_table(plans))
    sayings = (_checkpoint_line, _weights_line, _attention_line)
    lines = [say(plan) for plan in plans for say in sayings] + _shared_names(plans)
    lines += [reason for plan in plans for reason in plan.cell.absent.values()]
    for line in dict.fromkeys(filter(None, lines)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    can_run = [plan for plan in plans if plan.todo or not plan.cell.absent]
    suites = [each for plan in can_run for each in plan.cell.choices.suites]
    remarks = [text for each in suites for text in each.suite.remarks(each.config)] + hub.said()
    for line in dict.fromkeys(remarks):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{_counts(plans)}", highlight=False)


def _shared_names(plans: Sequence[CellPlan | PendingPlan]) -> list[str | None]:
    """Notes on different models of one name: how tables mark them, and how to rename them."""
    models: dict[str, set[str]] = {}
    for plan in plans:
        if isinstance(plan, CellPlan):
            models.setdefault(plan.identity.model, set()).add(plan.cell.model.fingerprint)
    return [
        f"{len(found)} models are called {name}: tables add part of their hash "
        f"({', '.join(sorted(each[:MODEL_DIGITS] for each in found))}); "
        "model.name=NAME gives one a name of its own"
        for name, found in models.items()
        if len(found) > 1
    ]


def _checkpoint_line(plan: CellPlan | PendingPlan) -> str | None:
    """For a model that is quantized already: its folder and what its config says."""
    model = plan.cell.model
    if model.checkpoint is None:
        return None
    place = model.config.path or model.config.id or model.name
    return f"{place}: {model.checkpoint.describe()}"


def _weights_line(plan: CellPlan | PendingPlan) -> str | None:
    """For a folder with several weight files: which is read and which is ignored."""
    said = plan.cell.model.ambiguity()
    return None if said is None else f"{plan.cell.model.name}: {said}"


def _attention_line(plan: CellPlan | PendingPlan) -> str | None:
    model = plan.cell.model
    if not isinstance(model, StoredModel | QuantizedModel) or model.config.attention != "eager":
        return None
    return attention_note(model)


def _counts(plans: Sequence[CellPlan | PendingPlan]) -> str:
    stages = sum(len(plan.shown) for plan in plans)
    todo = sum(len(plan.todo) for plan in plans)
    absent = sum(state == NOT_AVAILABLE for plan in plans for state in plan.shown.values())
    cells = f"{len(plans)} cell{'s' * (len(plans) != 1)}"
    said = f"{cells}, {_stages(stages)}: {todo} to run, {stages - todo - absent} done"
    return f"{said}, {absent} {NOT_AVAILABLE}" if absent else said


def _stages(count: int) -> str:
    return "1 stage" if count == 1 else f"{count} stages"


def _shown(path: Path) -> str:
    """A path, relative to the working directory if it is below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
