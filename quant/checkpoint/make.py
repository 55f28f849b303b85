"""Quantize a source of blocks into an artifact, block by block, resuming an interrupted run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.calibrate.cost import StageCost, StageMeter
from quant.calibrate.head import own_head
from quant.calibrate.reference import require_one_stream
from quant.calibrate.run import Progress
from quant.calibrate.source import BlockSource
from quant.calibrate.stream import (
    NEEDS_FILES,
    QuantizationResult,
    Workplace,
    quantize_blocks,
)
from quant.calibrate.survey import survey
from quant.checkpoint.card import Origin
from quant.checkpoint.files import weight_files
from quant.checkpoint.folder import sha256
from quant.checkpoint.partial import ACTIVATIONS, Making, partial_artifact
from quant.checkpoint.source import SkeletonSource
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.pruning.source import pruned


def quantize_to(
    target: str | Path,
    source: BlockSource,
    calibration: Sequence[Tensor],
    config: QuantizationConfig,
    *,
    model_hash: str,
    method: Mapping[str, Any],
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
    workplace: Workplace | None = None,
    origin: Origin | None = None,
) -> QuantizationResult:
    """Quantize the blocks of `source` into the artifact `target` (its form: see quant.save).

    Each block is one shard, and the rest another. If the run is killed, the next call with the same
    arguments resumes at the interrupted block, and the result is the same bit for bit (on the same
    machine with the same thread count: threads determine the order of summation). model_hash
    identifies the model's files (`files_hash`). A partial result for other arguments, another
    version of this code or of torch is deleted. origin is what the model card says besides.

    Raises the errors of quant.calibrate.stream.quantize_blocks and quant.save.
    """
    workplace = workplace or Workplace()
    identity = {
        "model": model_hash,
        "dtype": str(source.model.dtype),
        "attention": source.model.config._attn_implementation,
        "device": source.device.type,
        "quantization": config.identity(),
        "calibration": windows_hash(calibration),
    }
    folder = None if tokenizer is None else Path(tokenizer)
    making = Making(Path(target), config.layers, identity, method, folder, origin or Origin())
    workplace = dataclasses.replace(workplace, folder=making.folder / ACTIVATIONS)
    covered = survey(source, config.rules)  # before anything is written to disk
    require_one_stream(source.blocks, config)
    done: list[StageCost] = []
    said: str | None = None
    if config.pruning is not None:
        if not isinstance(source, SkeletonSource):
            raise QuantizationError(NEEDS_FILES.format(config.pruning[0].name))
        with StageMeter(source.device) as meter, meter.stage("prune"):
            left = pruned(source, *config.pruning, calibration, config)
        source, said, done = left, left.cut.said, meter.costs()
        covered = dataclasses.replace(survey(source, config.rules), removed=left.removed)
        config = dataclasses.replace(config, transforms=config.after_pruning)
    if config.residual is not None:
        own_head(source.model)  # so that the room for it is looked for
    with partial_artifact(making, source) as partial:
        result = quantize_blocks(source, calibration, config, partial, progress, workplace, covered)
    return dataclasses.replace(result, stages=[*done, *result.stages], removed=said)


def files_hash(folder: Path) -> str:
    """Return the sha256 of the names and contents of a model's config.json and weight files."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *weight_files(folder).paths]):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def windows_hash(windows: Sequence[Tensor]) -> str:
    """Return the sha256 of the token ids of calibration windows, in order."""
    digest = hashlib.sha256()
    for window in windows:
        ids = window.to("cpu", torch.int64).contiguous()
        digest.update(f"{len(ids)} ".encode())
        digest.update(ids.view(torch.uint8).numpy().data)
    return digest.hexdigest()
