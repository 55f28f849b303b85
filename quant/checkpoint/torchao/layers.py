"""Read and check the tensors of one layer that torchao quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.checkpoint.formats.base import (
    CheckpointFormat,
    check_scales,
    dtype_name,
    require_tensors,
)
from quant.checkpoint.torchao import int4
from quant.errors import ArtifactError
from quant.scheme import SCALE_DTYPES
from quant.weight import QuantizedWeight

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Tensors

CODES, SCALE, ZERO = "_weight_qdata", "_weight_scale", "_weight_zero_point"
# Present in calibrated models only.
OF_ACTIVATIONS = (
    "_weight_act_pre_scale",
    "_weight_act_quant_scale",
    "_weight_act_quant_zero_point",
)


def read_int(tensors: Tensors, parsed: CheckpointFormat, layer: str) -> QuantizedWeight:
    """Read a layer of codes in int8, whatever their width; ArtifactError names the tensor."""
    require_tensors(tensors, (CODES, SCALE), layer)
    _refuse_activations(tensors, layer)
    stored = tensors[CODES]
    if stored.dtype != torch.int8 or stored.dim() != 2 or not stored.numel():
        raise ArtifactError(
            f"{layer}.{CODES} is {stored.dtype} {list(stored.shape)}; expected an int8 matrix "
            "[outputs, inputs]."
        )
    shape = _groups(stored.shape[0], stored.shape[1], parsed, layer)
    scale = _grid(tensors, SCALE, shape, parsed, layer)
    middle = 1 << (parsed.bits - 1)
    codes = _shifted(stored, parsed.bits, f"{layer}.{CODES}")
    zero = torch.full(shape, middle, dtype=torch.uint8)
    if ZERO in tensors:
        if tensors[ZERO].dtype != torch.int8:
            raise ArtifactError(
                f"{layer}.{ZERO} is {tensors[ZERO].dtype}; only zero-points of int8 can be read."
            )
        held = _shaped(tensors[ZERO], shape, f"{layer}.{ZERO}")
        zero = _shifted(held, parsed.bits, f"{layer}.{ZERO}")
    elif not parsed.symmetric:
        require_tensors(tensors, (ZERO,), layer)
    if parsed.symmetric and bool((zero != middle).any()):
        raise ArtifactError(
            f"{layer}.{ZERO} holds {int(held[zero != middle][0])}, but config.json says that the "
            "mapping is symmetric, with zero-points of 0: one of the two is of another checkpoint; "
            "copy it again."
        )
    return QuantizedWeight(codes=codes, scale=scale, zero=zero, scheme=parsed.scheme(scale.dtype))


def read_int4(tensors: Tensors, parsed: CheckpointFormat, layer: str) -> QuantizedWeight:
    """Read a layer of two codes a byte, the first in the low half, with zero-points as weights."""
    require_tensors(tensors, (CODES, SCALE, ZERO), layer)
    _refuse_activations(tensors, layer)
    stored = tensors[CODES]
    if stored.dtype not in (torch.int8, torch.uint8) or stored.dim() != 2 or not stored.numel():
        raise ArtifactError(
            f"{layer}.{CODES} is {stored.dtype} {list(stored.shape)}; expected bytes [outputs, "
            "inputs / 2]."
        )
    bytes_ = stored.view(torch.uint8)
    halves = torch.stack([bytes_ & 15, bytes_ >> 4], dim=2).flatten(1)
    codes = halves ^ int4.MIDDLE  # from two's complement to an offset of 8
    outputs, groups = len(codes), parsed.scheme("float32").groups(codes.shape[1])
    scale = _grid(tensors, SCALE, (groups, outputs), parsed, layer)
    offset = _shaped(tensors[ZERO], (groups, outputs), f"{layer}.{ZERO}")
    if offset.dtype != scale.dtype or not bool(torch.isfinite(offset).all()):
        raise ArtifactError(
            f"{layer}.{ZERO} is {offset.dtype} and must be finite and {scale.dtype}, as "
            f"{layer}.{SCALE}: the file is damaged; download it again."
        )
    return QuantizedWeight(
        codes=codes,
        scale=scale.T.contiguous(),
        offset=offset.T.contiguous(),
        scheme=parsed.scheme(scale.dtype),
    )


def _refuse_activations(tensors: Tensors, layer: str) -> None:
    held = next((part for part in OF_ACTIVATIONS if part in tensors), None)
    if held is not None:
        raise ArtifactError(
            f"{layer}.{held} changes the layer's input (AWQ, SmoothQuant or static quantization in "
            "torchao), which is not done here: quantize again with a weight-only configuration."
        )


def _groups(outputs: int, inputs: int, parsed: CheckpointFormat, layer: str) -> tuple[int, int]:
    size = parsed.group_size or inputs
    if inputs % size:
        raise ArtifactError(
            f"{layer}.{CODES} has {inputs} inputs, which groups of {size} do not divide: config."
            "json is of another checkpoint, or the file is damaged; copy them again."
        )
    return outputs, inputs // size


def _grid(
    tensors: Tensors, part: str, shape: tuple[int, int], parsed: CheckpointFormat, layer: str
) -> Tensor:
    scale = _shaped(tensors[part], shape, f"{layer}.{part}")
    if dtype_name(scale.dtype) not in SCALE_DTYPES:
        raise ArtifactError(
            f"{layer}.{part} is {scale.dtype}; expected one of {', '.join(SCALE_DTYPES)}."
        )
    check_scales(scale, parsed, f"{layer}.{part}")
    return scale


def _shaped(tensor: Tensor, shape: tuple[int, int], name: str) -> Tensor:
    """Return a tensor of one number a group; ArtifactError if it has another shape."""
    if tuple(tensor.shape) != shape:
        raise ArtifactError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}; the codes and the group size make it "
            f"{list(shape)}."
        )
    return tensor


def _shifted(stored: Tensor, bits: int, name: str) -> Tensor:
    """Return signed integers as codes from 0, uint8; ArtifactError for those out of range."""
    middle = 1 << (bits - 1)
    low, high = (int(each) for each in torch.aminmax(stored))
    if low < -middle or high >= middle:
        raise ArtifactError(
            f"{name} holds {low if low < -middle else high}, but {bits} bits are {-middle} to "
            f"{middle - 1}: the file is damaged, or config.json is of another checkpoint; copy "
            "them again."
        )
    return (stored.short() + middle).to(torch.uint8)
