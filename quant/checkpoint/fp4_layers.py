"""Read and check the tensors of one layer that compressed-tensors stored as NVFP4 or MXFP4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.checkpoint.formats.base import CheckpointFormat, require_tensors
from quant.errors import ArtifactError
from quant.levels import mxfp4, nvfp4
from quant.levels.numbers import e2m1, e8m0
from quant.weight import QuantizedWeight

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Tensors

AGAIN = "the file is damaged; download it again, or quantize the original again."


def read_nvfp4(tensors: Tensors, parsed: CheckpointFormat, layer: str) -> QuantizedWeight:
    """Read one layer of NVFP4; ArtifactError names a tensor that is missing or does not fit."""
    require_tensors(tensors, ("weight_packed", "weight_scale", "weight_global_scale"), layer)
    packed = _packed(tensors, nvfp4.GROUP, layer)
    outputs, groups = len(packed), 2 * packed.shape[1] // nvfp4.GROUP
    scale, whole = tensors["weight_scale"], tensors["weight_global_scale"]
    _check(scale, (outputs, groups), torch.float8_e4m3fn, packed, layer)
    if tuple(whole.shape) != (1,) or whole.dtype != torch.float32:
        raise ArtifactError(
            f"{layer}.weight_global_scale is {whole.dtype} {list(whole.shape)}; expected the one "
            "number of the tensor, torch.float32 [1]."
        )
    values, by = scale.float(), float(whole)
    if bool(torch.isnan(values).any()):
        count = int(torch.isnan(values).sum())
        raise ArtifactError(
            f"{layer}.weight_scale: {count} of {scale.numel()} scales are NaN: {AGAIN}"
        )
    if bool((values < 0).any()):
        raise ArtifactError(
            f"{layer}.weight_scale holds {float(values.min()):g}, but scales of NVFP4 have no "
            f"sign: {AGAIN}"
        )
    if not 0 < by < float("inf"):
        raise ArtifactError(
            f"{layer}.weight_global_scale is {by:g}, by which the scales are divided; expected a "
            f"positive number: {AGAIN}"
        )
    if not bool(torch.isfinite(values.max() / whole * e2m1.LARGEST)):
        raise ArtifactError(
            f"{layer}.weight_global_scale is {by:.4g}, which makes weights exceed the range of "
            f"float32: {AGAIN}"
        )
    return QuantizedWeight(
        codes=e2m1.unpack(packed),
        scheme=parsed.scheme(parsed.scale_dtype),
        scale=scale.contiguous(),
        global_scale=whole.expand(outputs, 1).contiguous(),
    )


def read_mxfp4(tensors: Tensors, parsed: CheckpointFormat, layer: str) -> QuantizedWeight:
    """Read one layer of MXFP4; ArtifactError names a tensor that is missing or does not fit."""
    require_tensors(tensors, ("weight_packed", "weight_scale"), layer)
    if "weight_global_scale" in tensors:
        raise ArtifactError(
            f"{layer}.weight_global_scale is stored, but quantization_config says MXFP4, which has "
            "none: one of the two is wrong; get the matching files."
        )
    packed = _packed(tensors, mxfp4.GROUP, layer)
    shape = (len(packed), 2 * packed.shape[1] // mxfp4.GROUP)
    stored = tensors["weight_scale"]
    _check(stored, shape, torch.uint8, packed, layer)
    for beyond, what in ((e8m0.NAN, "255, NaN in E8M0"), (mxfp4.LARGEST + 1, "over 2^125")):
        count = int((stored >= beyond).sum())
        if count:
            raise ArtifactError(
                f"{layer}.weight_scale: {count} of {stored.numel()} scales are {what}: {AGAIN}"
            )
    return QuantizedWeight(
        codes=e2m1.unpack(packed),
        scheme=parsed.scheme(parsed.scale_dtype),
        exponent=stored.contiguous(),
    )


def _packed(tensors: Tensors, group: int, layer: str) -> Tensor:
    """Return the packed codes, uint8 [outputs, inputs / 2] with whole groups in a row."""
    packed = tensors["weight_packed"]
    if packed.dtype != torch.uint8 or packed.dim() != 2 or not packed.numel():
        raise ArtifactError(
            f"{layer}.weight_packed is {packed.dtype} {list(packed.shape)}; expected a uint8 "
            "matrix [outputs, inputs / 2]."
        )
    inputs = 2 * packed.shape[1]
    if inputs % group:
        raise ArtifactError(
            f"{layer}.weight_packed is {list(packed.shape)}, {inputs} codes a row, which are no "
            f"whole number of groups of {group}: {AGAIN}"
        )
    return packed


def _check(
    scale: Tensor, shape: tuple[int, ...], dtype: torch.dtype, packed: Tensor, layer: str
) -> None:
    if tuple(scale.shape) != shape or scale.dtype != dtype:
        raise ArtifactError(
            f"{layer}.weight_scale is {scale.dtype} {list(scale.shape)}; its config.json and "
            f"weight_packed {list(packed.shape)} make it {dtype} {list(shape)}."
        )
