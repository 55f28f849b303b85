"""The AWQ format (AutoAWQ, version "gemm"): eight 4-bit codes of one row of inputs in a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cuda_ext.layout import unpack_codes
from quant.checkpoint.format import CheckpointFormat, scale_dtypes
from quant.checkpoint.parse import parse
from quant.errors import ArtifactError
from quant.weight import QuantizedWeight

# Output 8 i + j lies in nibble NIBBLES[j] of word i, counted from the low end.
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def read_awq(
    tensors: Mapping[str, Tensor],
    quantization_config: Mapping[str, Any],
    *,
    layer: str = "this layer",
) -> QuantizedWeight:
    """The quantized weight of one layer of an AWQ checkpoint.

    tensors: qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales [groups, out].
    Zero-points are stored as they are. The values are scale * (code - zero) in float32, rounded
    once by `.dequantize(dtype)`. Raises ArtifactError naming the layer, the tensor and what was
    expected.
    """
    return from_tensors(tensors, parse(quantization_config, layer), layer)


def from_tensors(
    tensors: Mapping[str, Tensor], checkpoint: CheckpointFormat, layer: str
) -> QuantizedWeight:
    """As read_awq, for a quantization_config that is parsed already."""
    for name in ("qweight", "qzeros", "scales"):
        if name not in tensors:
            raise ArtifactError(
                f"{layer}: tensor {layer}.{name} is missing; the checkpoint is incomplete."
            )
    qweight, qzeros, scales = tensors["qweight"], tensors["qzeros"], tensors["scales"]
    if scales.dtype not in scale_dtypes() or scales.dim() != 2:
        raise ArtifactError(
            f"{layer}.scales are {scales.dtype} {list(scales.shape)}; expected floating point "
            "[groups, out]."
        )
    outputs, inputs = scales.shape[1], qweight.shape[0]
    if outputs % 8:
        raise ArtifactError(
            f"{layer}.scales are {list(scales.shape)}; AWQ packs eight outputs into a word, so "
            f"{outputs} outputs cannot be: the tensor is damaged or of another layer."
        )
    groups = -(-inputs // (checkpoint.group_size or inputs))
    for name, tensor, shape in (
        ("qweight", qweight, (inputs, outputs // 8)),
        ("qzeros", qzeros, (groups, outputs // 8)),
        ("scales", scales, (groups, outputs)),
    ):
        if tuple(tensor.shape) != shape or (name != "scales" and tensor.dtype != torch.int32):
            raise ArtifactError(
                f"{layer}.{name} is {tensor.dtype} {list(tensor.shape)}; expected "
                f"{list(shape)}{'' if name == 'scales' else ' int32'} for {inputs} inputs, "
                f"{outputs} outputs and groups of {checkpoint.group_size or inputs}."
            )
    if not bool(torch.isfinite(scales).all()):
        raise ArtifactError(f"{layer}.scales holds NaN or infinite values; make it again.")
    return QuantizedWeight(
        codes=_in_order(qweight, outputs).t().contiguous(),
        scale=scales.t().contiguous(),
        zero=_in_order(qzeros, outputs).t().contiguous(),
        scheme=checkpoint.scheme(scales.dtype),
    )


def _in_order(words: Tensor, outputs: int) -> Tensor:
    """uint8 [rows, outputs] in the order of the outputs."""
    nibbles = unpack_codes(words, 4, outputs).unflatten(1, (-1, 8))
    return nibbles[..., list(NIBBLES)].flatten(1)
