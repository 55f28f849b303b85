"""Read and check the tensors of one layer in GPTQ's and Bitsweep's formats."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cuda_ext.codes import pack_rows
from quant.checkpoint.formats.base import (
    CheckpointFormat,
    check_scales,
    require_tensors,
    scale_dtypes,
)
from quant.checkpoint.gptq import V1, V2, Version
from quant.checkpoint.gptq_zeros import COARSE_BITS, CONSTANT
from quant.errors import ArtifactError
from quant.levels import uniform
from quant.linear import Packed, packed_dtypes, packed_shapes, unpack
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

if TYPE_CHECKING:
    from quant.checkpoint.formats.base import Shape, Tensors


def read_version(
    tensors: Tensors,
    checkpoint: CheckpointFormat,
    layer: str,
    shape: Shape,
    version: Version,
) -> QuantizedWeight:
    """Read one layer like `read`, and convert its zero-points to the true ones.

    Version 1 stores zero-points minus one modulo 2^bits (0 as 2^bits - 1), so 1 is added modulo
    2^bits. Raises ArtifactError if the zero-points contradict the version or sym.
    """
    found = read(tensors, checkpoint, layer, shape)
    zero = found.grid["zero"]
    _check_zeros(zero, checkpoint, version, layer)
    if version.subtracted:  # they were unpacked into memory of their own
        zero.add_(version.subtracted).bitwise_and_(found.scheme.max_code)
    return found


def read(
    tensors: Tensors,
    checkpoint: CheckpointFormat,
    layer: str,
    shape: Shape,
) -> QuantizedWeight:
    """Check the tensors of one layer and return the weight that quant.linear.pack packs into them.

    tensors: qweight int32 [ceil(in * bits / 32), out]; the grid's tensors as the levels declare
    them (uniform: scales [groups, out] and qzeros int32 [groups, ceil(out * bits / 32)]);
    optionally g_idx int32 [in], which is dropped if it equals j // group_size. If shape (outputs,
    inputs) is None, the inputs are derived from g_idx, or from the rows of qweight.

    Raises ArtifactError for missing tensors, wrong shapes and dtypes, scales that are not finite,
    and a g_idx that contradicts desc_act.
    """
    telling = checkpoint.format.scales
    kind = checkpoint.scheme(checkpoint.scale_dtype).kind
    names = ("qweight", *(each.buffer for each in kind.tensors))
    require_tensors(tensors, names, layer, "names another format")
    widest = "qweight" if telling is None else telling
    scale_dtype = checkpoint.scale_dtype if telling is None else tensors[telling].dtype
    if telling is not None and scale_dtype not in scale_dtypes():
        raise ArtifactError(f"{layer}.scales are {scale_dtype}; expected float16, 32 or bfloat16.")
    for name in dict.fromkeys(("qweight", widest)):
        if tensors[name].dim() != 2:
            raise ArtifactError(
                f"{layer}.{name} is {list(tensors[name].shape)}; expected a matrix."
            )
    scheme = checkpoint.scheme(scale_dtype)
    packed = {name: tensors[name] for name in names}
    if "g_idx" in tensors:
        packed["g_idx"] = tensors["g_idx"]
    outputs, inputs = shape or (packed[widest].shape[1], _inputs(packed, checkpoint))
    _check_shapes(packed, scheme, inputs, outputs, layer)
    for each in (each for each in kind.tensors if not each.code):
        name = f"{layer}.{each.buffer}"
        if kind == uniform.LEVELS:  # other levels may have scales that are 0 or negative
            check_scales(packed[each.buffer], checkpoint, name)
        elif not bool(torch.isfinite(packed[each.buffer].float()).all()):
            raise ArtifactError(f"{name} has NaN or infinite values; quantize again.")
    _settle_groups(packed, checkpoint, scheme, layer)
    return unpack(packed, scheme, inputs)


def subtract_one(packed: Packed, weight: QuantizedWeight, layer: str) -> Packed:
    """Return the tensors with zero-points as version 1 stores them.

    Raises ArtifactError for a zero-point of 0: minus one it is -1, which writers and readers treat
    differently (some wrap it, some carry into the next zero-point).
    """
    assert weight.zero is not None
    if not bool(weight.zero.all()):
        raise ArtifactError(
            f"{layer}.qzeros: {int((weight.zero == 0).sum())} zero-points are 0, which version 1 "
            "stores as -1 and its readers decode in different ways: export to gptq-v2 or "
            "compressed-tensors."
        )
    return {**packed, "qzeros": pack_rows((weight.zero - 1).t(), weight.scheme.bits)}


def _inputs(packed: Packed, checkpoint: CheckpointFormat) -> int:
    """Return the inputs of a layer: the length of g_idx, or the codes in a column of qweight."""
    if "g_idx" in packed:
        return len(packed["g_idx"])
    return packed["qweight"].shape[0] * 32 // checkpoint.bits


def _check_shapes(
    packed: Packed, scheme: Scheme, in_features: int, out_features: int, layer: str
) -> None:
    shapes = packed_shapes(scheme, in_features, out_features, g_idx="g_idx" in packed)
    dtypes = packed_dtypes(scheme)
    for name, tensor in packed.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ArtifactError(
                f"{layer}.{name} is {list(tensor.shape)}, but {in_features} inputs, {out_features} "
                f"outputs and scheme {scheme.name} make {list(shapes[name])}; the checkpoint "
                "does not fit its config.json."
            )
        if tensor.dtype != dtypes[name]:
            raise ArtifactError(f"{layer}.{name} is {tensor.dtype}; expected {dtypes[name]}.")


def _check_zeros(zeros: Tensor, checkpoint: CheckpointFormat, version: Version, layer: str) -> None:
    """Check stored zero-points, uint8, against the version where they reveal it.

    Symmetric zero-points are all 2^(bits-1), stored minus one in version 1. A layer whose stored
    zero-points all equal that constant of the *other* version is a mix-up, even if the checkpoint
    says that it is asymmetric: no grid search returns hundreds of equal zero-points.
    """
    bits = checkpoint.bits
    low, high = (int(value) for value in zeros.t().aminmax())  # as it lies in memory
    other = V2 if version == V1 else V1
    if low == high == other.symmetric_zero(bits) and (
        checkpoint.symmetric or (zeros.numel() >= CONSTANT and bits > COARSE_BITS)
    ):
        said = "and other layers show" if checkpoint.evidence else "says"
        raise ArtifactError(
            f"{layer}.qzeros holds {low} everywhere, the symmetric zero-point of "
            f"checkpoint_format={other.checkpoint_format!r}, but quantization_config {said} "
            f"{version.checkpoint_format!r}, where it is stored as "
            f"{version.symmetric_zero(bits)}: set checkpoint_format to "
            f"{other.checkpoint_format!r} and sym to true in config.json."
        )
    if checkpoint.symmetric and not low == high == version.symmetric_zero(bits):
        raise ArtifactError(
            f"{layer}.qzeros holds {low} to {high}, but quantization_config says sym=true, where "
            f"every stored zero-point is {V1.symmetric_zero(bits)} (checkpoint_format "
            f"{V1.checkpoint_format!r}) or {V2.symmetric_zero(bits)} ({V2.checkpoint_format!r}): "
            "set sym to false in config.json, or get the matching files."
        )


def _settle_groups(
    packed: Packed, checkpoint: CheckpointFormat, scheme: Scheme, layer: str
) -> None:
    """Check g_idx against desc_act, and drop it if the columns of each group are adjacent."""
    index = packed.get("g_idx")
    if index is None:
        if checkpoint.act_order and scheme.group_size is not None:
            raise ArtifactError(
                f"{layer}: tensor {layer}.g_idx is missing, but quantization_config says "
                "desc_act=true; without it the groups of the columns are unknown."
            )
        return
    if torch.equal(index, _adjacent(len(index), scheme.group_size or len(index)).to(index)):
        del packed["g_idx"]
        return
    groups = scheme.groups(len(index))
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= groups:
        raise ArtifactError(
            f"{layer}.g_idx goes from {low} to {high}, but the layer has groups 0 to {groups - 1}."
        )
    if not checkpoint.act_order:
        raise ArtifactError(
            f"{layer}.g_idx scatters the groups, but quantization_config says desc_act=false. One "
            "of the two is wrong: correct desc_act in config.json, or get the matching files."
        )


@lru_cache(maxsize=16)
def _adjacent(inputs: int, size: int) -> Tensor:
    """The group of every input if those of a group are adjacent, int32 [inputs]."""
    return torch.arange(inputs, dtype=torch.int32) // size
