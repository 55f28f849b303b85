"""From a source of blocks to an artifact: quantize, write as blocks are finished, resume."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant.calibrate.run import Progress
from quant.calibrate.source import BlockSource
from quant.calibrate.stream import (
    QuantizationResult,
    Workplace,
    quantize_blocks,
)
from quant.calibrate.survey import survey
from quant.checkpoint.files import weight_files
from quant.checkpoint.folder import sha256
from quant.checkpoint.partial import ACTIVATIONS, Making, partial_artifact
from quant.config import QuantizationConfig


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
) -> QuantizationResult:
    """Quantize the blocks of `source` into the artifact `target` (see quant.save for its form).

    One shard a block and one for the rest. A run that was killed is continued by the next call with
    the same arguments from the block where it stopped, with the same result bit for bit (on the
    same machine with the same number of threads: sums are rounded in the order in which threads
    share them). model_hash stands for the model's files (`files_hash`); what an interrupted run
    left for other arguments, another version of this code or of torch is thrown away.

    Raises what quant.calibrate.stream.quantize_blocks and quant.save raise.
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
    making = Making(Path(target), config.scheme, identity, method, folder)
    workplace = dataclasses.replace(workplace, folder=making.folder / ACTIVATIONS)
    covered = survey(source, config.rules)  # what is refused leaves nothing on the disk
    with partial_artifact(making, source) as partial:
        return quantize_blocks(source, calibration, config, partial, progress, workplace, covered)


def files_hash(folder: Path) -> str:
    """sha256 over names and contents of config.json and the weights of a model's folder."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *weight_files(folder).paths]):
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def windows_hash(windows: Sequence[Tensor]) -> str:
    """sha256 over the token ids of calibration windows, in their order."""
    digest = hashlib.sha256()
    for window in windows:
        ids = window.to("cpu", torch.int64).contiguous()
        digest.update(f"{len(ids)} ".encode())
        digest.update(ids.view(torch.uint8).numpy().data)
    return digest.hexdigest()
