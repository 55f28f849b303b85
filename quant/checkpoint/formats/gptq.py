"""The GPTQ format: tensors of one layer in any of its versions to packed buffers and weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cuda_ext.layout import pack_codes, unpack_codes
from quant.checkpoint.format import GPTQ_V1, GPTQ_V2, TERNARY, CheckpointFormat, scale_dtypes
from quant.checkpoint.parse import parse
from quant.errors import ArtifactError
from quant.linear import Packed, pack, packed_shapes, unpack
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

# Every second bit of a word of sixteen 2-bit codes.
_LOW_BITS = 0x55555555
# Equal zero-points that an asymmetric layer does not have by chance; at 2 bits, with four values
# and weights that lean to one side, it may.
_CONSTANT = 128
_COARSE_BITS = 2


def read_gptq(
    tensors: Mapping[str, Tensor],
    quantization_config: Mapping[str, Any],
    *,
    in_features: int | None = None,
    layer: str = "this layer",
) -> QuantizedWeight:
    """The quantized weight of one layer of a GPTQ checkpoint, v1, v2 or Bitsweep's ternary.

    tensors: qweight int32 [ceil(in * bits / 32), out], scales [groups, out], qzeros int32
    [groups, ceil(out * bits / 32)] (ternary: scales_negative [groups, out]) and optionally g_idx
    int32 [in]. in_features is taken from g_idx, or from the rows of qweight, when not given.

    Its float32 values are scale * (code - zero), so `.dequantize(torch.bfloat16)` rounds once, as
    GPTQModel does. Raises ArtifactError naming the layer, the tensor and what was expected.
    """
    checkpoint = parse(quantization_config, layer)
    inputs = in_features or input_features(tensors, checkpoint, layer)
    packed, scheme = canonical(tensors, checkpoint, inputs, layer)
    return unpack(packed, scheme, inputs)


def input_features(tensors: Mapping[str, Tensor], checkpoint: CheckpointFormat, layer: str) -> int:
    """Number of inputs of a layer: the length of g_idx, or what the rows of qweight hold."""
    _require(tensors, ("qweight",), layer)
    index = tensors.get("g_idx")
    return len(index) if index is not None else tensors["qweight"].shape[0] * 32 // checkpoint.bits


def canonical(
    tensors: Mapping[str, Tensor],
    checkpoint: CheckpointFormat,
    in_features: int,
    layer: str,
    out_features: int | None = None,
) -> tuple[Packed, Scheme]:
    """Check the tensors of one layer and give them as quant.linear.pack would have made them.

    Zero-points of version 1 are stored minus one modulo 2^bits (a zero-point of 0 as 2^bits - 1):
    1 is added, modulo 2^bits. A g_idx that only says j // group_size is dropped. Raises
    ArtifactError for missing tensors, wrong shapes and types, scales that are not finite,
    zero-points that contradict the version or sym, a g_idx that contradicts desc_act, and a ternary
    code that does not exist.
    """
    ternary = checkpoint.kind == TERNARY
    grid = "scales_negative" if ternary else "qzeros"
    _require(tensors, ("qweight", "scales", grid), layer)
    scales = tensors["scales"]
    if scales.dtype not in scale_dtypes():
        raise ArtifactError(f"{layer}.scales are {scales.dtype}; expected float16, 32 or bfloat16.")
    for name in ("qweight", "scales"):
        if tensors[name].dim() != 2:
            raise ArtifactError(
                f"{layer}.{name} is {list(tensors[name].shape)}; expected a matrix."
            )
    scheme = checkpoint.scheme(scales.dtype)
    packed = {name: tensors[name] for name in ("qweight", "scales", grid)}
    if "g_idx" in tensors:
        packed["g_idx"] = tensors["g_idx"]
    _check_shapes(packed, scheme, in_features, out_features or scales.shape[1], layer)
    for name in ("scales", "scales_negative"):
        if name in packed and not bool(torch.isfinite(packed[name]).all()):
            raise ArtifactError(f"{layer}.{name} holds NaN or infinite values; make it again.")
    if ternary:
        _check_ternary(packed["qweight"], layer)
    else:
        packed["qzeros"] = _true_zeros(packed["qzeros"], checkpoint, scales.shape[1], layer)
    _settle_groups(packed, checkpoint, scheme, layer)
    return packed, scheme


def to_tensors(weight: QuantizedWeight, version: str, layer: str) -> Packed:
    """The tensors of one layer as version "gptq" (1) or "gptq_v2" stores them; inverse of reading.

    g_idx is always there: other loaders want it even when the groups are neighbours.

    Raises ArtifactError for a zero-point of 0 in version 1: stored minus one it is -1, which its
    writers and readers treat in different ways (some wrap it, some spill into the next one).
    """
    tensors = {**pack(weight), "g_idx": weight.column_groups().int()}
    if version == GPTQ_V1:
        if weight.zero is None:
            raise ArtifactError(f"{layer}: GPTQ version 1 has no ternary levels.")
        if not bool(weight.zero.all()):
            raise ArtifactError(
                f"{layer}.qzeros: {int((weight.zero == 0).sum())} zero-points are 0, which version "
                "1 stores as -1 and its readers decode in different ways: export to gptq-v2 or "
                "compressed-tensors."
            )
        tensors["qzeros"] = pack_codes((weight.zero - 1).t(), weight.scheme.bits)
    return tensors


def _require(tensors: Mapping[str, Tensor], names: tuple[str, ...], layer: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ArtifactError(
            f"{layer}: tensor {layer}.{missing[0]} is missing; the layer has "
            f"{', '.join(sorted(tensors)) or 'none'}. The checkpoint is incomplete, or its "
            "quantization_config names another format."
        )


def _check_shapes(
    packed: Packed, scheme: Scheme, in_features: int, out_features: int, layer: str
) -> None:
    shapes = packed_shapes(scheme, in_features, out_features, g_idx="g_idx" in packed)
    floating = {"scales", "scales_negative"}
    for name, tensor in packed.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ArtifactError(
                f"{layer}.{name} is {list(tensor.shape)}, but {in_features} inputs, {out_features} "
                f"outputs and scheme {scheme.name} make {list(shapes[name])}; the checkpoint "
                "does not fit its config.json."
            )
        expected = packed["scales"].dtype if name in floating else torch.int32
        if tensor.dtype != expected:
            raise ArtifactError(f"{layer}.{name} is {tensor.dtype}; expected {expected}.")


def _true_zeros(qzeros: Tensor, checkpoint: CheckpointFormat, outputs: int, layer: str) -> Tensor:
    """qzeros with true zero-points, checked against the version of the format where they tell it.

    Symmetric zero-points are all 2^(bits-1), stored minus one in version 1. A layer whose stored
    zero-points are all that constant of the *other* version is a mix-up, also when the checkpoint
    calls itself asymmetric: no search of a grid gives hundreds of equal zero-points.
    """
    bits = checkpoint.bits
    zeros = unpack_codes(qzeros, bits, outputs)
    version = checkpoint.kind
    low, high = (int(value) for value in zeros.aminmax())
    other = GPTQ_V2 if version == GPTQ_V1 else GPTQ_V1
    if low == high == _symmetric_zero(bits, other) and (
        checkpoint.symmetric or (zeros.numel() >= _CONSTANT and bits > _COARSE_BITS)
    ):
        if checkpoint.declared or not checkpoint.symmetric:
            raise ArtifactError(
                f"{layer}.qzeros holds {low} everywhere, the symmetric zero-point of "
                f"checkpoint_format={other!r}, but quantization_config "
                f"{'says' if checkpoint.declared else 'without one means'} {version!r}, where it "
                f"is stored as {_symmetric_zero(bits, version)}: set checkpoint_format to "
                f"{other!r} and sym to true in config.json."
            )
        version = other
    elif checkpoint.symmetric and not low == high == _symmetric_zero(bits, version):
        raise ArtifactError(
            f"{layer}.qzeros holds {low} to {high}, but quantization_config says sym=true, where "
            f"every stored zero-point is {_symmetric_zero(bits, GPTQ_V1)} (checkpoint_format "
            f"'gptq') or {_symmetric_zero(bits, GPTQ_V2)} ('gptq_v2'): set sym to false in "
            "config.json, or get the matching files."
        )
    if version == GPTQ_V2:
        return qzeros
    return pack_codes((zeros + 1).bitwise_and_(2**bits - 1), bits)


def _symmetric_zero(bits: int, version: str) -> int:
    """The zero-point of symmetric grids as a version stores it."""
    return 2 ** (bits - 1) - (version == GPTQ_V1)


def _settle_groups(
    packed: Packed, checkpoint: CheckpointFormat, scheme: Scheme, layer: str
) -> None:
    """Check g_idx against desc_act and drop it when the groups are neighbours anyway."""
    index = packed.get("g_idx")
    if index is None:
        if checkpoint.act_order and scheme.group_size is not None:
            raise ArtifactError(
                f"{layer}: tensor {layer}.g_idx is missing, but quantization_config says "
                "desc_act=true; without it the groups of the columns are unknown."
            )
        return
    groups = packed["scales"].shape[0]
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or high >= groups:
        raise ArtifactError(
            f"{layer}.g_idx goes from {low} to {high}, but the layer has groups 0 to {groups - 1}."
        )
    columns = torch.arange(len(index), dtype=index.dtype, device=index.device)
    if torch.equal(index, columns // (scheme.group_size or len(index))):
        del packed["g_idx"]
    elif not checkpoint.act_order:
        raise ArtifactError(
            f"{layer}.g_idx scatters the groups, but quantization_config says desc_act=false. One "
            "of the two is wrong: correct desc_act in config.json, or get the matching files."
        )


def _check_ternary(qweight: Tensor, layer: str) -> None:
    if bool((qweight & (qweight >> 1) & _LOW_BITS).any()):
        raise ArtifactError(
            f"{layer}.qweight holds code 3; ternary codes are 0, 1 and 2. The file is damaged."
        )
