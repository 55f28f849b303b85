"""The memory plans of a cell: of its quantization, and of suites that hold much beside a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from harness.cell.cells import ResolvedCell
from harness.cell.parts import Measuring
from harness.data import protocols
from harness.models.model import RandomModel, StoredModel
from harness.models.streaming import (
    ALWAYS,
    measured_shape,
    model_facts,
    quantization_memory,
    streams,
)
from harness.suites.base import Facts
from quant.allocation import Allocation, AskedScheme, stored_bits
from quant.budget import Budget

if TYPE_CHECKING:
    from quant.memory.plan import Item, MemoryPlan


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


def suite_memory(
    cell: ResolvedCell, measuring: Measuring, loaded: bool = False
) -> MemoryPlan | None:
    """Plan the memory of a suite that says what it holds; None for others and random weights.

    loaded  the model is in memory already, and not among what is free.

    Raises MemoryPlanError, with the figures, if it does not fit.
    """
    from quant.memory.limits import free_memory
    from quant.memory.plan import plan_suite

    suite, choices, model = measuring.suite, cell.choices, cell.model
    if suite.memory is None or isinstance(model, RandomModel):
        return None
    facts = Facts(
        key=f"suite.{suite.name}",
        model=model.name,
        shape=model.shape,
        data_dir=choices.data,
        device=choices.runtime.device,
        threads=choices.runtime.threads,
        has_original=model.checkpoint is None,
        tokenizer=model.folder,
    )
    items = suite.memory(measuring.config, facts, model_facts(model).shape)
    if not items:
        return None
    limits = free_memory(choices.runtime.device)
    advice = (
        f"measure shorter windows or leave suite={suite.name} out, use a larger machine, or "
        "model.dtype=bfloat16"
    )
    weights = [] if loaded else _weights(cell)
    return plan_suite([*weights, *items], limits, advice)


def _weights(cell: ResolvedCell) -> Iterator[Item]:
    """Yield the items of the model under test, in memory as a whole."""
    from quant.memory.plan import IN_HOST, ON_DEVICE, Item

    here = ON_DEVICE if cell.choices.runtime.device.startswith("cuda") else IN_HOST
    made = cell.artifact is not None and cell.artifact.is_dir()
    packed = cell.artifact if made else cell.model.folder if cell.model.checkpoint else None
    shape, facts = measured_shape(cell.model, packed, cell.choices.scheme)
    scheme = cell.choices.scheme
    size = shape.whole_bytes
    if packed is None and scheme is not None and isinstance(cell.model, StoredModel):
        size = artifact_bytes(cell)
    yield Item("weights of the model", size, here)
    if cell.quantized:
        largest = 4 * max(map(math.prod, facts.linears.values()), default=0)
        yield Item("the largest layer, dequantized", largest, here)


def artifact_bytes(cell: ResolvedCell) -> int:
    """Bytes of the weights of an artifact that is still to be made."""
    facts, scheme = model_facts(cell.stored_model), cell.choices.scheme
    assert scheme is not None
    shape = facts.shape
    if any(each.transform.residual is not None for each in cell.choices.transforms):
        shape = shape.with_own_head()
    return shape.packed_outside(scheme).outside_bytes + _packed_bits(scheme, facts.linears) // 8


def _packed_bits(scheme: AskedScheme, layers: Mapping[str, tuple[int, int]]) -> int:
    """Stored bits of all linear layers (outputs, inputs)."""
    if isinstance(scheme, Allocation):
        return scheme.budget(sum(map(math.prod, layers.values())))
    if isinstance(scheme, Budget):
        return sum(8 * scheme.most_bytes(*shape) for shape in layers.values())
    return sum(stored_bits(scheme.of(name), *shape) for name, shape in layers.items())


def _require_room_to_write(cell: ResolvedCell) -> None:
    """Raise MemoryPlanError for a model that writes its own calibration text and does not fit."""
    calib, runtime = cell.choices.calibration, cell.choices.runtime
    if calib is None or not protocols.find(calib.protocol, protocols.CALIBRATION).generates:
        return
    from harness.data.generated import BATCH  # torch, which no other plan needs
    from quant.memory.plan import MemoryPlanError

    if streams(cell.stored_model, None, runtime, batch=BATCH):
        raise MemoryPlanError(
            f"calib={calib.name}: the model writes its own calibration text, for which it must be "
            f"in memory as a whole; {cell.identity.model} does not fit, or "
            f"runtime.stream={ALWAYS}: choose a text, such as calib=c4, or a smaller model."
        )
