"""What `bitsweep run` does with composed cells: plan, run, table, report, tracking."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compose import Cell, as_yaml
from harness.errors import BitsweepError
from harness.models import model_folder
from harness.plan import CellPlan, plan_cell, plan_table
from harness.record import Record
from harness.store import write_atomically
from harness.sweep import Outcome, run_sweep

if TYPE_CHECKING:
    from rich.console import Console

OK, FAILED, INTERRUPTED = 0, 1, 130


def make_plans(cells: Sequence[Cell], download: bool) -> list[CellPlan]:
    """The plan of every cell. With download, hub models are fetched first (their hash is in keys).

    Names that agree although the models differ would mix in tables, so ModelError comes early.
    """
    for cell in cells:
        model_folder(cell.config.model, download=download)
    return [plan_cell(cell.config) for cell in cells]


def show_plan(plans: Sequence[CellPlan]) -> None:
    """Print cells and stages, and how much of them is done."""
    console = _console()
    console.print(plan_table(list(plans)))
    console.print(f"\n{_counts(plans)}", highlight=False)


def run(cells: Sequence[Cell], plans: list[CellPlan], config_dir: Path | None = None) -> int:
    """Run what is to be run, then table, report and tracking; the exit status."""
    first = plans[0].config
    results, name = Path(first.paths.results), first.name
    diary = results / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{_slug(name)}-{os.getpid()}"
    screen = _console(stderr=True)
    screen.print(plan_table(plans))
    screen.print(f"\n{_counts(plans)}", highlight=False)
    if any(plan.todo for plan in plans):
        write_atomically(diary / "cells.yaml", "---\n".join(as_yaml(cell) for cell in cells))
        outcome = _carry_out(cells, plans, diary, screen, config_dir)
    else:
        outcome = Outcome(cached=sum(len(plan.stages) for plan in plans))
    records = _records(plans)
    good = [record for record in records if record.status == "ok"]
    status = _status(outcome)
    if good:
        folder = results / "reports" / _slug(name)
        report(records, folder, name)
        status = max(status, _track(plans, folder, screen))
    _summary(outcome, diary, screen)
    return status


def report(records: list[Record], folder: Path, title: str) -> None:
    """Write the report and print its table and where it is."""
    from harness.report.build import build_report
    from harness.report.tables import summary_table

    files = build_report(records, folder, title)
    console = _console()
    console.print(summary_table(records, width=console.width))
    console.print(
        f"\nreport: {_shown(files[0])} (tables, plots and CSV beside it)", highlight=False
    )


def _carry_out(
    cells: Sequence[Cell],
    plans: list[CellPlan],
    diary: Path,
    screen: Console,
    config_dir: Path | None,
) -> Outcome:
    """Here, or through the Hydra launcher plugin that was chosen."""
    from harness import launcher

    if launcher.is_chosen(cells):
        return launcher.run_with_launcher(cells, plans, config_dir)
    return run_sweep(plans, diary, screen)


def _records(plans: Sequence[CellPlan]) -> list[Record]:
    found = (plan.find(stage) for plan in plans for stage in plan.stages)
    return [record for record in found if record is not None]


def _track(plans: Sequence[CellPlan], folder: Path, screen: Console) -> int:
    """Hand every cell's records to the tracker; it is a sink, so its trouble costs no results."""
    status = OK
    for plan in plans:
        if plan.config.tracker.name == "none":
            continue
        from harness.tracking import log_cell

        records = [record for record in _records([plan]) if record.status == "ok"]
        if not records:
            continue
        try:
            log_cell(plan.config, records, folder)
        except Exception as error:
            screen.print(
                f"tracking with {plan.config.tracker.name} failed ({error}): the results are safe; "
                "use tracker=none to do without.",
                style="red",
                highlight=False,
                markup=False,
            )
            return FAILED
    return status


def _status(outcome: Outcome) -> int:
    if outcome.interrupted:
        return INTERRUPTED
    return FAILED if outcome.failures or outcome.stopped else OK


def _summary(outcome: Outcome, diary: Path, screen: Console) -> None:
    """What happened, and what to do next when not all of it was good."""
    lines = [
        f"{outcome.finished} stages run, {outcome.cached} found finished, "
        f"{len(outcome.failures)} failed"
    ]
    lines += [f"  {name} {each.stage}: {each.message}" for name, each in outcome.failures]
    if outcome.failures:
        lines.append(f"logs: {_shown(diary)}; run the same command again to retry what failed")
    if outcome.stopped:
        lines.append(f"stopped: {outcome.stopped}")
    if outcome.interrupted:
        lines.append(
            "interrupted: finished stages are kept; run the same command again to go on from here"
        )
    for line in lines:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def _counts(plans: Sequence[CellPlan]) -> str:
    stages = sum(len(plan.stages) for plan in plans)
    todo = sum(len(plan.todo) for plan in plans)
    cells = f"{len(plans)} cell{'s' * (len(plans) != 1)}"
    return f"{cells}, {stages} stages: {todo} to run, {stages - todo} done"


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Without a terminal rich assumes 80 columns and would fold the tables in logs.
    width = None if stream.isatty() else 120
    return Console(stderr=stderr, width=width)


def _shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


__all__ = ["BitsweepError", "make_plans", "report", "run", "show_plan"]
