"""The packed operators in plain PyTorch: kernel="reference" and the oracle of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext.layout import unpack_codes


def weight_columns(
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None,
    scales_negative: Tensor | None,
    g_idx: Tensor | None,
    bits: int,
    in_features: int,
    group_size: int,
) -> Tensor:
    """Return the weight of packed buffers as float32 [in, out] (GPTQ's orientation).

    Buffers as in cuda_ext.ops. Uniform: scale * (code - zero), where the difference is exact and
    the product is rounded once. Ternary: {-scales_negative, 0, scales} for codes {0, 1, 2}.
    """
    outputs = scales.shape[1]
    codes = unpack_codes(qweight, bits, in_features, dim=0, dtype=torch.float32)
    zeros = None if qzeros is None else unpack_codes(qzeros, bits, outputs, dtype=torch.float32)
    grid = [None if part is None else part.float() for part in (scales, zeros, scales_negative)]
    if g_idx is None and in_features == group_size * scales.shape[0]:
        # Adjacent columns: a view broadcasts one row of the grid over its whole group.
        codes = codes.view(scales.shape[0], group_size, outputs)
        grid = [None if part is None else part.unsqueeze(1) for part in grid]
    else:
        if g_idx is None:
            g_idx = torch.arange(in_features, device=codes.device) // group_size
        grid = [None if part is None else part[g_idx.long()] for part in grid]
    scale, zero, negative = grid
    assert scale is not None
    if zero is not None:
        weight = codes.sub_(zero).mul_(scale)
    else:
        assert negative is not None
        level = codes.sub_(1.0)
        weight = torch.where(level > 0, scale, negative).mul_(level)
    return weight.view(in_features, outputs)


def dequantize(
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None,
    scales_negative: Tensor | None,
    g_idx: Tensor | None,
    bits: int,
    in_features: int,
    group_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the weight [out, in], computed in float32 and rounded once to dtype."""
    columns = weight_columns(
        qweight, scales, qzeros, scales_negative, g_idx, bits, in_features, group_size
    )
    return columns.t().to(dtype).contiguous()


def linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None,
    scales_negative: Tensor | None,
    g_idx: Tensor | None,
    bias: Tensor | None,
    bits: int,
    group_size: int,
) -> Tensor:
    """Return x [..., in] times the weight plus bias, in float32 (float64 for float64 x).

    The result is [..., out] in the dtype of x.
    """
    columns = weight_columns(
        qweight, scales, qzeros, scales_negative, g_idx, bits, x.shape[-1], group_size
    )
    compute = torch.promote_types(x.dtype, torch.float32)
    added = None if bias is None else bias.to(compute)
    return functional.linear(x.to(compute), columns.t().to(compute), added).to(x.dtype)
