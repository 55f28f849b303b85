"""Tables of the plan: cells with the states of their stages, and memory plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.cell.plan import CellPlan, PendingPlan
from harness.data.config import CalibConfig
from harness.records.record import QUANTIZATION

if TYPE_CHECKING:
    from rich.table import Table


def plan_table(plans: Sequence[CellPlan | PendingPlan]) -> Table:
    """The plan as a table: one row per cell, one column per stage."""
    from rich.table import Table
    from rich.text import Text

    every = dict.fromkeys(name for plan in plans for name in plan.shown)
    names = sorted(every, key=lambda name: name != QUANTIZATION)  # the first stage of a cell
    table = Table(title="plan", title_justify="left", box=None, pad_edge=False)
    for column in ("model", "method", "scheme", "calibration", "seed", *names):
        table.add_column(Text(column))
    texts = calibration_texts(plans)
    for plan, text in zip(plans, texts, strict=True):
        cell, stages = plan.identity, plan.shown
        states = [stages.get(name, "-") for name in names]
        # Without its options one method would seem to run twice.
        method = " ".join(filter(None, (cell.method, cell.options)))
        words = (cell.model, method, cell.scheme, text, str(cell.seed))
        table.add_row(*map(Text, (*words, *states)))  # brackets in a name are not markup
    return table


def calibration_texts(plans: Sequence[CellPlan | PendingPlan]) -> list[str]:
    """The calibration of every cell, with what differs among those of one name; "-" for none."""
    calibrations = [plan.cell.choices.calibration for plan in plans]
    values: dict[tuple[str, str], set[object]] = {}
    for each in filter(None, calibrations):
        for key in ("path", "sequences", "length"):
            values.setdefault((each.name, key), set()).add(getattr(each, key))
    return ["-" if each is None else _text(each, values) for each in calibrations]


def _text(calib: CalibConfig, values: Mapping[tuple[str, str], set[object]]) -> str:
    told = [key for (name, key), found in values.items() if name == calib.name and len(found) > 1]
    return " ".join([calib.name, *(f"{key}={getattr(calib, key)}" for key in told)])


def memory_table(title: str, rows: Sequence[tuple[str, str, int]]) -> Table:
    """A memory plan (quant.memory.plan) as a table: what, where, and the most bytes."""
    from rich.table import Table
    from rich.text import Text

    from quant.memory.plan import size

    table = Table(title=Text(title, "table.title"), title_justify="left", box=None, pad_edge=False)
    table.add_column("what")
    table.add_column("where")
    table.add_column("bytes", justify="right")
    for what, where, count in rows:
        table.add_row(what, where, size(count))
    return table


def memory_line(rows: Sequence[tuple[str, str, int]]) -> str:
    """The sums of a memory plan in one line."""
    from quant.memory.plan import FREE, WORST, size

    free = {where: size(count) for what, where, count in rows if what == FREE}
    parts = [
        f"{where} {size(count)} of {free.get(where, 'unknown')}"
        for what, where, count in rows
        if what == WORST
    ]
    return f"memory at most: {'; '.join(parts)}"
