"""The plan of a sweep: which cells, which stages, what is done already. Loads no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cell.keys import QUANTIZATION, StageKeys, cell_keys, stage_names
from harness.cell.validation import make_scheme
from harness.config.schema import CellConfig
from harness.models.checkpoints import METHOD, find_checkpoint
from harness.records.record import CellIdentity, Record
from harness.records.store import Store

if TYPE_CHECKING:
    from rich.table import Table

DONE, FAILED, TO_RUN = "done", "failed before", "to run"


@dataclass(frozen=True)
class CellPlan:
    """One cell: its configuration, keys, and the state of each of its stages in order.

    keys is None (and every stage "to run") while the model is not on this machine.
    """

    config: CellConfig
    identity: CellIdentity
    keys: StageKeys | None
    stages: dict[str, str]

    @property
    def todo(self) -> list[str]:
        """Stages that a run would carry out, in order."""
        return [name for name, state in self.stages.items() if state != DONE]

    @property
    def store(self) -> Store:
        return Store(Path(self.config.paths.results))

    @property
    def artifact(self) -> Path | None:
        """Folder of the quantized model; None for a cell that is not quantized."""
        if self.keys is None or QUANTIZATION not in self.keys.stages:
            return None
        return self.store.artifact_path(self.identity, self.keys.stages[QUANTIZATION])

    def find(self, stage: str) -> Record | None:
        """The record of a stage, if there is one."""
        if self.keys is None:
            return None
        return self.store.find(self.identity, self.keys.cell, stage, self.keys.stages[stage])


def plan_cell(config: CellConfig) -> CellPlan:
    """Look up what is done. StoreError for a damaged record."""
    keys = cell_keys(config)
    plan = CellPlan(config, identity(config), keys, {})
    if keys is None:
        return CellPlan(config, plan.identity, None, dict.fromkeys(stage_names(config), TO_RUN))
    states = {name: _state(plan.find(name)) for name in keys.stages}
    if (
        states.get(QUANTIZATION) == DONE
        and any(state != DONE for state in states.values())
        and plan.artifact is not None
        and not plan.artifact.is_dir()
    ):
        states[QUANTIZATION] = TO_RUN  # the artifact was deleted, and a suite needs it
    return CellPlan(config, plan.identity, keys, states)


def identity(config: CellConfig, bits_per_weight: float | None = None) -> CellIdentity:
    """The names of a cell in tables."""
    loaded = find_checkpoint(config.model)
    scheme = make_scheme(config.scheme) if loaded is None else loaded.scheme
    return CellIdentity(
        model=config.model.name,
        method=config.method.name if loaded is None else METHOD,
        scheme="w16" if scheme is None else scheme.name,
        calibration=config.calib.name if config.method.name == "gptq" else None,
        seed=config.seed,
        bits_per_weight=bits_per_weight,
    )


def plan_table(plans: list[CellPlan]) -> Table:
    """The plan as a table: one row a cell, one column a stage."""
    from rich.table import Table

    names = list(dict.fromkeys(name for plan in plans for name in plan.stages))
    table = Table(title="plan", title_justify="left", box=None, pad_edge=False)
    for column in ("model", "method", "scheme", "calibration", "seed", *names):
        table.add_column(column)
    for plan in plans:
        cell = plan.identity
        states = [plan.stages.get(name, "-") for name in names]
        table.add_row(
            cell.model, cell.method, cell.scheme, cell.calibration or "-", str(cell.seed), *states
        )
    return table


def memory_table(title: str, rows: Sequence[tuple[str, str, int]]) -> Table:
    """A memory plan (quant.memory.plan): what is held, where, and how many bytes at most."""
    from rich.table import Table

    from quant.memory.plan import size

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
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


def _state(record: Record | None) -> str:
    if record is None:
        return TO_RUN
    return DONE if record.status == "ok" else FAILED
