"""Detect the GPTQ version of a checkpoint that does not declare it, from its tensors.

Version 1 stores zero-points minus one, version 2 stores them unchanged. Reading with the wrong
version shifts every weight of a layer by one step of its grid. Symmetric checkpoints have one
constant, which is 2^(b-1) in one version only. Asymmetric ones are decided by their dequantized
weights: the weights of a layer average to nearly 0, and the range of its rows is centred near 0, in
steps of the grid; read with the wrong version, both are a whole step off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cuda_ext.layout import unpack_codes, words_for
from quant.checkpoint.gptq import V1, V2, Version
from quant.errors import ArtifactError

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import CheckpointFormat, Tensors

# Outputs of a layer that are examined: whole words of codes of any width.
OUTPUTS = 256
# Number of equal zero-points that an asymmetric checkpoint does not have by chance. At 2 bits, with
# four values and skewed weights, it may.
CONSTANT = 128
COARSE_BITS = 2
# Standard errors that must separate a mean from half a step.
SURE = 4.0


@dataclass(frozen=True)
class Reading:
    """Statistics of the dequantized weights read as one version, in steps of their grids.

    mean    mean of code - zero over groups, the average of the weights; `error` is its standard
            error.
    middle  mean centre of the levels of a grid; `spread` is its standard error.
    """

    mean: float
    error: float
    middle: float
    spread: float

    def description(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f} (middle of the range {self.middle:+.2f})"


def find_version(
    checkpoint: CheckpointFormat, layers: Mapping[str, Tensors], where: str
) -> tuple[Version, str] | None:
    """Return the version that the tensors of some layers show, and the evidence.

    None if they are incomplete or contradict the configuration; reading them reports that by name.
    Raises ArtifactError, naming the key to set, if they fit both versions.
    """
    bits = checkpoint.bits
    found = [each for each in map(lambda t: _parts(t, bits), layers.values()) if each is not None]
    if not found:
        return None
    stored = torch.cat([zeros.flatten() for _, zeros, _ in found])
    low, high = (int(value) for value in stored.aminmax())
    for version in (V1, V2):
        known = version.symmetric_zero(bits)
        many = len(stored) >= CONSTANT and bits > COARSE_BITS
        if low == high == known and (checkpoint.symmetric or many):
            return version, (
                f"all {len(stored)} zero-points of {_layers(len(found))} are stored as {known}, "
                f"the symmetric {2 ** (bits - 1)} in this version alone"
            )
    if checkpoint.symmetric:
        return None
    one, two = _reading(found, bits, V1), _reading(found, bits, V2)
    for version, right, wrong in ((V1, one, two), (V2, two, one)):
        beside = abs(right.middle) - abs(wrong.middle) - 0.5
        if (
            abs(right.mean) + SURE * right.error < 0.5 < abs(wrong.mean) - SURE * wrong.error
            and beside < SURE * right.spread
        ):
            return version, (
                f"weights of {_layers(len(found))} average {right.description()} steps from 0, "
                f"in the other version {wrong.description()}"
            )
    raise ArtifactError(
        f"{where}: quantization_config does not say checkpoint_format, and {_layers(len(found))} "
        f"do not show it: their weights average {one.description()} steps from 0 in version 1 and "
        f"{two.description()} in version 2; add checkpoint_format to quantization_config, 'gptq' "
        "(version 1, AutoGPTQ's) or 'gptq_v2'."
    )


def wraps(layers: Mapping[str, Tensors], bits: int) -> bool:
    """Whether version 1 stores a zero-point of 0 in one of these layers, as 2^bits - 1.

    Without wrapping it would be read as 2^bits, beyond every code: a grid that does not contain 0.
    """
    found = (_parts(tensors, bits) for tensors in layers.values())
    return any(bool((each[1] == 2**bits - 1).any()) for each in found if each is not None)


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _parts(tensors: Tensors, bits: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return codes [in, out], stored zero-points [groups, out] and the group of each input.

    Only of the first outputs; None for tensors that do not belong together.
    """
    words, packed = tensors.get("qweight"), tensors.get("qzeros")
    if words is None or packed is None or not words.dtype == packed.dtype == torch.int32:
        return None
    if words.dim() != 2 or packed.dim() != 2 or not words.numel() or not packed.numel():
        return None
    index = tensors.get("g_idx")
    inputs = words.shape[0] * 32 // bits if index is None else len(index)
    outputs = min(words.shape[1], OUTPUTS)
    groups, held = packed.shape
    fits = (words_for(inputs, bits), words_for(words.shape[1], bits)) == (len(words), held)
    if not fits or groups > inputs:
        return None
    codes = unpack_codes(words[:, :outputs].contiguous(), bits, inputs, dim=0)
    zeros = unpack_codes(packed[:, : words_for(outputs, bits)].contiguous(), bits, outputs)
    if index is None:
        index = torch.arange(inputs) // -(-inputs // groups)
    index = index.long().cpu()
    if int(index.min()) < 0 or int(index.max()) >= groups:
        return None
    return codes, zeros, index


def _reading(layers: list[tuple[Tensor, Tensor, Tensor]], bits: int, version: Version) -> Reading:
    means, middles = [], []
    for codes, stored, index in layers:
        zeros = (stored.long() + version.subtracted).bitwise_and_(2**bits - 1).double()
        count = torch.bincount(index, minlength=len(zeros)).clamp_(min=1)
        sums = torch.zeros_like(zeros).index_add_(0, index, codes.double())
        means.append((sums / count[:, None] - zeros).flatten())
        middles.append(((2**bits - 1) / 2 - zeros).flatten())
    mean, middle = torch.cat(means), torch.cat(middles)
    return Reading(float(mean.mean()), _error(mean), float(middle.mean()), _error(middle))


def _error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
