"""Read and check the tensors of one layer in the compressed-tensors format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quant.checkpoint import compressed_packing as packing
from quant.checkpoint.formats.base import (
    CheckpointFormat,
    check_scales,
    require_tensors,
    scale_dtypes,
)
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Tensors


def read(tensors: Tensors, parsed: CheckpointFormat, layer: str) -> QuantizedWeight:
    """Read one layer; ArtifactError names a tensor that is missing, damaged or does not fit."""
    _require(tensors, parsed, layer)
    outputs, inputs = _shape(tensors["weight_shape"], layer)
    scale = tensors["weight_scale"]
    if scale.dtype not in scale_dtypes():
        raise ArtifactError(f"{layer}.weight_scale is {scale.dtype}; expected floating point.")
    scheme = parsed.scheme(scale.dtype)
    groups = scheme.groups(inputs)
    packed = tensors["weight_packed"]
    held = _held(tensors, outputs, inputs)
    way = packing.settled(scheme.bits, parsed.packing, layer, held)
    shape = (outputs, packing.words(inputs, scheme.bits, way))
    _check(tensors, "weight_packed", shape, torch.int32, layer)
    _check(tensors, "weight_scale", (outputs, groups), scale.dtype, layer)
    check_scales(scale, parsed, f"{layer}.weight_scale")
    return QuantizedWeight(
        codes=packing.codes_of(packed, scheme.bits, inputs, way, f"{layer}.weight_packed"),
        scale=scale.contiguous(),
        zero=_zero_points(tensors, scheme, outputs, groups, way, layer),
        scheme=scheme,
        group_index=_group_index(tensors, parsed, groups, inputs, layer),
    )


def shown_packing(tensors: Tensors, parsed: CheckpointFormat) -> str:
    """Return the packing that a layer's tensors show; "" if they fit both, or are damaged."""
    stored, packed = tensors.get("weight_shape"), tensors.get("weight_packed")
    if stored is None or packed is None or tuple(stored.shape) != (2,):
        return ""
    return packing.shown(parsed.bits, _held(tensors, *map(int, stored)))


def _held(tensors: Tensors, outputs: int, inputs: int) -> list[tuple[int, int]]:
    """Return the words of a row, and of a column of zero-points, each with its count of codes."""
    held = [(tensors["weight_packed"].shape[-1:].numel(), inputs)]
    zero = tensors.get("weight_zero_point")
    if zero is not None and zero.dtype == torch.int32:
        held.append((zero.shape[:1].numel(), outputs))
    return held


def _require(tensors: Tensors, parsed: CheckpointFormat, layer: str) -> None:
    needed = ["weight_packed", "weight_scale", "weight_shape"]
    needed += [] if parsed.symmetric else ["weight_zero_point"]
    needed += ["weight_g_idx"] if parsed.act_order and parsed.group_size else []
    require_tensors(tensors, needed, layer)


def _shape(stored: Tensor, layer: str) -> tuple[int, int]:
    if tuple(stored.shape) != (2,) or stored.is_floating_point() or int(stored.min()) < 1:
        raise ArtifactError(
            f"{layer}.weight_shape is {stored.dtype} {list(stored.shape)}; expected the two "
            "positive integers outputs and inputs."
        )
    return int(stored[0]), int(stored[1])


def _check(
    tensors: Tensors, name: str, shape: tuple[int, ...], dtype: torch.dtype, layer: str
) -> None:
    tensor = tensors[name]
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ArtifactError(
            f"{layer}.{name} is {tensor.dtype} {list(tensor.shape)}; its config.json and "
            f"weight_shape {tensors['weight_shape'].tolist()} make it {dtype} {list(shape)}."
        )


def _zero_points(
    tensors: Tensors, scheme: Scheme, outputs: int, groups: int, way: str, layer: str
) -> Tensor:
    """Return uint8 [outputs, groups]; stored packed, or as int8 by early library versions."""
    middle = 2 ** (scheme.bits - 1)
    stored = tensors.get("weight_zero_point")
    if stored is None:
        return torch.full((outputs, groups), middle, dtype=torch.uint8)
    if stored.dtype == torch.int8:
        _check(tensors, "weight_zero_point", (outputs, groups), torch.int8, layer)
        low, high = (int(value) for value in stored.aminmax())
        if low < -middle or high >= middle:
            raise ArtifactError(
                f"{layer}.weight_zero_point goes from {low} to {high}, but {scheme.bits} bits "
                f"hold {-middle} to {middle - 1}."
            )
        zero: Tensor = (stored.int() + middle).to(torch.uint8)
    else:
        shape = (packing.words(outputs, scheme.bits, way), groups)
        _check(tensors, "weight_zero_point", shape, torch.int32, layer)
        name = f"{layer}.weight_zero_point"
        zero = packing.unpack(stored, scheme.bits, outputs, way, name, dim=0)
    if scheme.symmetric and bool((zero != middle).any()):
        raise ArtifactError(
            f"{layer}.weight_zero_point holds {int(zero[zero != middle][0]) - middle}, but "
            "quantization_config says symmetric=true, where it is 0. One of the two is wrong: set "
            "symmetric to false in config.json, or get the matching files."
        )
    return zero


def _group_index(
    tensors: Tensors,
    parsed: CheckpointFormat,
    groups: int,
    inputs: int,
    layer: str,
) -> Tensor | None:
    """Return int32 [inputs], or None if the columns of each group are adjacent."""
    index = tensors.get("weight_g_idx")
    if index is None or parsed.group_size is None:
        return None
    _check(tensors, "weight_g_idx", (inputs,), torch.int32, layer)
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= groups:
        raise ArtifactError(
            f"{layer}.weight_g_idx goes from {low} to {high}, but the layer has groups 0 to "
            f"{groups - 1}."
        )
    if torch.equal(index, (torch.arange(inputs) // parsed.group_size).int()):
        return None
    if not parsed.act_order:
        raise ArtifactError(
            f"{layer}.weight_g_idx scatters the groups, but quantization_config does not say "
            "actorder='group'. One of the two is wrong: correct it in config.json, or get the "
            "matching files."
        )
    return index
