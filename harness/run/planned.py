"""What `bitsweep plan` prints, and `bitsweep run` before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cell.cells import PendingCell, ResolvedCell
from harness.cell.fits import attention_note
from harness.cell.plan import CellPlan, PendingPlan, plan_cell
from harness.data import hub
from harness.models.model import QuantizedModel, StoredModel
from harness.records.record import NOT_AVAILABLE, QUANTIZATION
from harness.records.store import Store, cell_name
from harness.report.frame import MODEL_DIGITS
from harness.run.detectable import detectable_lines
from harness.run.expected import expected_lines
from harness.run.screen import open_console
from harness.run.tables import memory_table, plan_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_plan(
    cells: Sequence[ResolvedCell | PendingCell], elsewhere: bool = False, workers: int = 1
) -> None:
    """Print the cells, the state of their stages, and what the open ones cost: time, disk, memory.

    elsewhere  the cells run on other machines, whose memory is not known here.
    workers    how many run cells at a time.
    """
    console = open_console()
    plans = [look_up(cell) for cell in cells]
    check_place(plans)
    print_plan(plans, console)
    for line in expected_lines(plans, elsewhere, workers) + detectable_lines(plans):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if elsewhere:
        console.print("memory is planned, and refused, on the machine that runs a cell")
    else:
        _show_memory([plan for plan in plans if isinstance(plan, CellPlan)], console)


def check_place(plans: Sequence[CellPlan | PendingPlan]) -> None:
    """Raise StoreError if the results folder of a cell to run cannot be written."""
    for results in {plan.cell.choices.results for plan in plans if plan.todo}:
        Store(results).check_place()


def look_up(cell: ResolvedCell | PendingCell) -> CellPlan | PendingPlan:
    """The states of a cell's stages."""
    return PendingPlan(cell) if isinstance(cell, PendingCell) else plan_cell(cell)


def _show_memory(plans: Sequence[CellPlan], console: Console) -> None:
    """Print the memory plans of stages to run: the largest of each model and method or suite."""
    stages = [(plan, stage) for plan in plans for stage in plan.todo if _is_planned(plan, stage)]
    if not stages:
        return  # transformers, which knows the shapes of models, takes seconds to import
    from harness.run.memory import planned_memory, suite_memory
    from quant.errors import QuantizationError
    from quant.memory.plan import WORST

    tables: dict[tuple[str, str, str], tuple[int, Table]] = {}
    for plan, stage in stages:
        name, what = cell_name(plan.identity), "" if stage == QUANTIZATION else f", suite {stage}"
        try:
            if stage == QUANTIZATION:
                memory = planned_memory(plan.cell)
            else:
                found = suite_memory(plan.cell, plan.cell.measuring(stage))
                if found is None:
                    continue
                memory = found
        except QuantizationError as error:
            said = f"\n{name}{what}: {error}"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
            continue
        rows = tuple(memory.rows())
        needed = sum(count for line, _, count in rows if line == WORST)
        kind = (stage, plan.identity.model, plan.identity.method if stage == QUANTIZATION else "")
        if kind not in tables or needed > tables[kind][0]:
            tables[kind] = (needed, memory_table(f"\nmemory of {name}{what}", rows))
    for _, table in tables.values():
        console.print(table)


def _is_planned(plan: CellPlan, stage: str) -> bool:
    if stage == QUANTIZATION:
        return plan.cell.choices.solves
    return plan.cell.measuring(stage).suite.memory is not None


def print_plan(plans: Sequence[CellPlan | PendingPlan], console: Console) -> None:
    """Print cells and stages, and what is to be known of them before they run."""
    console.print(plan_table(plans))
    sayings = (_checkpoint_line, _weights_line, _attention_line, _devices_line)
    lines = [say(plan) for plan in plans for say in sayings] + shared_names(plans)
    lines += [reason for plan in plans for reason in plan.cell.absent.values()]
    for line in dict.fromkeys(filter(None, lines)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    can_run = [plan for plan in plans if plan.todo or not plan.cell.absent]
    suites = [each for plan in can_run for each in plan.cell.choices.suites]
    remarks = [text for each in suites for text in each.suite.remarks(each.config)] + hub.said()
    for line in dict.fromkeys(remarks):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{_counts(plans)}", highlight=False)


def shared_names(plans: Sequence[CellPlan | PendingPlan]) -> list[str | None]:
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


def _devices_line(plan: CellPlan | PendingPlan) -> str | None:
    """For a cell whose models lie over several devices."""
    said = plan.cell.devices.said() if isinstance(plan.cell, ResolvedCell) else None
    return None if said is None else f"{cell_name(plan.identity)}: {said}"


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
    said = f"{cells}, {stages_said(stages)}: {todo} to run, {stages - todo - absent} done"
    return f"{said}, {absent} {NOT_AVAILABLE}" if absent else said


def stages_said(count: int) -> str:
    """ "1 stage", "2 stages"."""
    return "1 stage" if count == 1 else f"{count} stages"
