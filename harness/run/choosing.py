"""The choice of schemes of a cell with scheme=auto, and what records say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.cell.cells import ResolvedCell
from harness.models.streaming import open_packed, open_source
from harness.records.record import LayerReport, Metric
from quant.allocation import KLD, LOSS, RELATIVE, Allocation

if TYPE_CHECKING:
    from quant.allocate.run import Chosen
    from quant.calibrate.layers import LayerResult
    from quant.calibrate.source import BlockSource
    from quant.calibrate.stream import Workplace


def choose_schemes(
    cell: ResolvedCell,
    source: BlockSource,
    windows: Sequence[Any],
    progress: Any,
    place: Workplace,
) -> Chosen:
    """Choose the schemes of layers as the cell's allocation says; what is measured is kept."""
    from quant.allocate.run import COSTS, choose
    from quant.checkpoint.folder import working_folder

    assert cell.artifact is not None
    return choose(
        source,
        windows,
        cell.quantization,
        kept=working_folder(cell.artifact) / COSTS,
        model_hash=cell.stored_model.fingerprint,
        progress=progress,
        workplace=place,
    )


def report_of(layer: LayerResult, chosen: Chosen | None) -> LayerReport:
    """The record of a layer, with what candidates cost it if its scheme was chosen."""
    costs = {} if chosen is None else dict(chosen.sensitivities.get(layer.name, {}))
    return LayerReport(**asdict(layer), sensitivities=costs)


def costs_of(
    cell: ResolvedCell,
    chosen: Chosen,
    layers: Sequence[LayerResult],
    windows: Sequence[Any],
) -> list[Metric]:
    """The cost that was predicted for the choice of schemes, and the one that is measured."""
    from quant.allocate.divergence import some_tokens, whole_divergence

    allocation = cell.choices.scheme
    assert isinstance(allocation, Allocation)
    measured: float | None = None
    if allocation.sensitivity == KLD:
        assert cell.artifact is not None
        some = some_tokens(windows, allocation.tokens)
        transforms = [each.transform for each in cell.choices.transforms]
        with (
            open_source(cell.stored_model, cell.place.device, cell.choices.results) as full,
            open_packed(cell.model, cell.artifact, cell.place, transforms) as packed,
        ):
            measured = whole_divergence(full, packed, some)
    elif allocation.sensitivity == LOSS and all(layer.loss is not None for layer in layers):
        measured = 2 * sum(layer.loss or 0.0 for layer in layers)  # a loss is half of tr(E H E^T)
    unit = {KLD: "nat", LOSS: "error"}.get(allocation.sensitivity, "ratio")
    values = {"predicted_cost": chosen.predicted, "measured_cost": measured}
    return [
        Metric(
            name=name, task=f"{allocation.sensitivity} of scheme=auto", value=value, unit=unit,
            n=len(layers), n_unit="layers",
        )
        for name, value in values.items()
        if value is not None
    ]  # fmt: skip


# What a sensitivity of quant.allocation measures of a layer, for people.
COST_NAMES = {RELATIVE: "relative error", LOSS: "error tr(E H Eᵀ)", KLD: "KLD in nats"}


def mixture_of(layers: Sequence[LayerResult], costs: Sequence[Metric]) -> str | None:
    """Layers in the blocks by scheme, and the costs of a choice; None if they have one scheme."""
    found = Counter(layer.scheme for layer in layers)
    if len(found) < 2:
        return None
    said = ", ".join(f"{n} layer{'s' * (n > 1)} {name}" for name, n in found.most_common())
    if not costs:
        return said
    ways = {"predicted_cost": "predicted (sum over layers)", "measured_cost": "measured"}
    words = [f"{each.value:.3g} {ways[each.name]}" for each in costs]
    cost = COST_NAMES[costs[0].task.partition(" ")[0]]
    return f"{said}; {cost} with scheme=auto: {', '.join(words)}"
