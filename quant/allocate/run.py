"""Choose the schemes of layers: measure what candidates cost, then take the best choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cuda_ext.cache import write_atomically
from quant.allocate.assign import assign
from quant.allocate.divergence import measure_divergences, some_tokens
from quant.allocate.loss import Sensitivities, measure_losses
from quant.allocation import KLD, Allocation, stored_bits
from quant.blocks import named_layers, weight_matrix
from quant.calibrate.run import Progress
from quant.calibrate.source import BlockSource
from quant.calibrate.stream import Workplace
from quant.calibrate.windows import check_windows
from quant.checkpoint.make import windows_hash
from quant.checkpoint.partial import code_hash
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.fused import fused_groups
from quant.scheme import Scheme, mixture

COSTS = "costs.json"  # name of the file of costs, in the working folder of an artifact
# Digits of a cost that count: sums in float64 differ between machines after the twelfth.
_DIGITS = 9


@dataclass(frozen=True)
class Chosen:
    """The choice of an Allocation.

    scheme         of the model, with those of layers by full name.
    sensitivities  costs that were measured, by layer and name of the candidate.
    predicted      sum of the costs of the chosen candidates.
    """

    scheme: Scheme
    sensitivities: Sensitivities
    predicted: float


def choose(
    source: BlockSource,
    calibration: Sequence[Tensor],
    config: QuantizationConfig,
    *,
    kept: Path | None = None,
    model_hash: str = "",
    progress: Progress | None = None,
    workplace: Workplace | None = None,
) -> Chosen:
    """Choose the schemes of layers as config.scheme, an Allocation, says.

    Transforms change the model of `source`: open it again to quantize it. kept is a file in which
    costs are kept, so that a run that was killed goes on (quant.checkpoint.folder.working_folder);
    model_hash identifies the model's files for it.

    Raises SchemeError for a budget that the model's layers cannot meet, QuantizationError for
    transforms where they cannot be measured, and the errors of
    quant.calibrate.stream.quantize_blocks.
    """
    allocation = config.scheme
    assert isinstance(allocation, Allocation)
    check_windows(calibration, source.model)
    reason = allocation.refuses([transform.name for transform, _ in config.transforms])
    if reason is not None:
        raise QuantizationError(reason)
    file = _Kept(kept, _key(calibration, config, source, model_hash))
    found = file.read()
    if allocation.sensitivity != KLD:
        if not found:
            found = measure_losses(source, calibration, config, progress, workplace)
            file.write(found)
    else:
        some = some_tokens(calibration, allocation.tokens)
        measure_divergences(source, some, config, found, lambda: file.write(found), progress)
    shapes = {
        name: (int(outputs), int(inputs))
        for name, module in named_layers(source.blocks).items()
        for outputs, inputs in [weight_matrix(module).shape]
    }
    return best(allocation, shapes, found)


def best(
    allocation: Allocation, shapes: Mapping[str, tuple[int, int]], costs: Sensitivities
) -> Chosen:
    """Return the best choice for layers (outputs, inputs) by full name, whose costs are known."""
    allocation.require_possible(list(shapes.values()))
    candidates = allocation.candidates
    weights = sum(outputs * inputs for outputs, inputs in shapes.values())
    groups = fused_groups(shapes) if allocation.fused else [(name,) for name in shapes]
    bits = [
        [sum(stored_bits(each, *shapes[name]) for name in group) for each in candidates]
        for group in groups
    ]
    known = [
        [_rounded(sum(costs[name][each.name] for name in group)) for each in candidates]
        for group in groups
    ]
    chosen = assign(bits, known, allocation.budget(weights))
    of_group = {n: candidates[at] for group, at in zip(groups, chosen, strict=True) for n in group}
    schemes = {name: of_group[name] for name in shapes}
    predicted = sum(costs[name][scheme.name] for name, scheme in schemes.items())
    return Chosen(mixture(schemes).beside(allocation.outside), costs, predicted)


def _rounded(cost: float) -> float:
    return float(f"{cost:.{_DIGITS - 1}e}")


def _key(
    calibration: Sequence[Tensor], config: QuantizationConfig, source: BlockSource, model_hash: str
) -> str:
    """Return the sha256 of all that determines the costs."""
    parts: dict[str, Any] = {
        "model": model_hash,
        "dtype": str(source.model.dtype),
        "device": source.device.type,
        "quantization": config.identity(),
        "calibration": windows_hash(calibration),
        "code": code_hash(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Kept:
    """Costs in a file under the key of what determines them; None: they are not kept."""

    file: Path | None
    key: str

    def read(self) -> Sensitivities:
        """Return the costs that were kept under this key; {} if there are none."""
        if self.file is None:
            return {}
        try:
            said = json.loads(self.file.read_text(encoding="utf-8"))
            return dict(said["costs"]) if said["key"] == self.key else {}
        except (OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged
            return {}

    def write(self, costs: Sensitivities) -> None:
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps({"key": self.key, "costs": costs}) + "\n")
