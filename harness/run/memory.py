"""The memory plan of a cell's quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cell.cells import ResolvedCell
from harness.models.streaming import quantization_memory

if TYPE_CHECKING:
    from quant.memory.plan import MemoryPlan


def planned_memory(cell: ResolvedCell) -> MemoryPlan:
    """What quantizing will hold, and where; no weight is read.

    Raises MemoryPlanError, with the figures, when it does not fit, and ModelStructureError for a
    model of which too little can be quantized.
    """
    choices = cell.choices
    return quantization_memory(
        cell.stored_model,
        cell.quantization,
        choices.calibration,
        choices.runtime,
        choices.results,
    )
