"""The memory plan of a cell's quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cell.cells import ResolvedCell
from harness.data import protocols
from harness.models.streaming import ALWAYS, quantization_memory, streams

if TYPE_CHECKING:
    from quant.memory.plan import MemoryPlan


def planned_memory(cell: ResolvedCell) -> MemoryPlan:
    """Plan the memory of a cell's quantization without reading weights.

    Raises MemoryPlanError, with the figures, if it does not fit, and ModelStructureError if too
    small a share of the model can be quantized.
    """
    choices = cell.choices
    _require_room_to_write(cell)
    return quantization_memory(
        cell.stored_model,
        cell.quantization,
        choices.calibration,
        choices.runtime,
        choices.results,
    )


def _require_room_to_write(cell: ResolvedCell) -> None:
    """Raise MemoryPlanError for a model that writes its own calibration text and does not fit."""
    from harness.data.generated import BATCH
    from quant.memory.plan import MemoryPlanError

    calib, runtime = cell.choices.calibration, cell.choices.runtime
    if calib is None or not protocols.find(calib.protocol, protocols.CALIBRATION).generates:
        return
    if streams(cell.stored_model, None, runtime, batch=BATCH):
        raise MemoryPlanError(
            f"calib={calib.name}: the model writes its own calibration text, for which it must be "
            f"in memory as a whole; {cell.identity.model} does not fit, or "
            f"runtime.stream={ALWAYS}: choose a text, such as calib=c4, or a smaller model."
        )
