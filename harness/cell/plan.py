"""The plan of a sweep: the state of every stage, from the records in the store."""

from __future__ import annotations

from dataclasses import dataclass

from harness.cell.cells import PendingCell, ResolvedCell
from harness.records.record import NOT_AVAILABLE, QUANTIZATION, CellIdentity, Record

DONE, FAILED, TO_RUN = "done", "failed before", "to run"


@dataclass(frozen=True)
class CellPlan:
    """A cell that can run, with the states of its stages in order."""

    cell: ResolvedCell
    stages: dict[str, str]

    @property
    def identity(self) -> CellIdentity:
        return self.cell.identity

    @property
    def shown(self) -> dict[str, str]:
        """The states of all stages, also of those whose data cannot be had."""
        return self.stages | dict.fromkeys(self.cell.absent, NOT_AVAILABLE)

    @property
    def todo(self) -> list[str]:
        """The stages to run, in order."""
        return [name for name, state in self.stages.items() if state != DONE]


@dataclass(frozen=True)
class PendingPlan:
    """A cell whose model is not on this machine: all of its stages are to be run, or none can."""

    cell: PendingCell

    @property
    def identity(self) -> CellIdentity:
        return self.cell.identity

    @property
    def stages(self) -> dict[str, str]:
        state = TO_RUN if self.cell.reason is None else NOT_AVAILABLE
        return dict.fromkeys(self.cell.choices.stage_names, state)

    shown = stages

    @property
    def todo(self) -> list[str]:
        return list(self.stages) if self.cell.reason is None else []


def plan_cell(cell: ResolvedCell) -> CellPlan:
    """Look up the state of every stage. Raises StoreError for a damaged record.

    A suite that was measured on an earlier artifact than the present one is to be run again, and so
    is one whose artifact has no record, as after a change of the solver.
    """
    records = {name: cell.find(name) for name in cell.keys.stages}
    made = records.get(QUANTIZATION)
    quantizes = QUANTIZATION in records
    states = {name: _state(record, made, quantizes) for name, record in records.items()}
    if (
        states.get(QUANTIZATION) == DONE
        and any(state != DONE for state in states.values())
        and cell.artifact is not None
        and not cell.artifact.is_dir()
    ):
        states[QUANTIZATION] = TO_RUN  # the artifact was deleted but a suite needs it
    return CellPlan(cell, states)


def _state(record: Record | None, made: Record | None, quantizes: bool) -> str:
    if record is None:
        return TO_RUN
    measured = record.inputs.get("artifact")
    if (
        quantizes
        and measured
        and (made is None or made.inputs.get("artifact", measured) != measured)
    ):
        return TO_RUN  # another version of the solver, another machine or other library versions
    return DONE if record.status == "ok" else FAILED
