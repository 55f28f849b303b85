"""QuantizedWeight: the one currency between solver, packer, checkpoint and module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quant.scheme import Scheme


@dataclass(frozen=True)
class QuantizedWeight:
    """Integer codes and the grid that gives them back their values.

    codes           uint8 [out, in], 0 .. scheme.max_code.
    scale           [out, groups] in scheme.scale_dtype, finite and > 0. Ternary: the value of
                    code 2 (row maximum), may be 0.
    zero            uint8 [out, groups], 0 .. scheme.max_code; None for ternary.
    negative_scale  ternary only: [out, groups] like scale, the magnitude of code 0 (-row minimum).
    group_index     int32 [in], the group of each column; None when column j is in group
                    j // group_size. Only act-order with moving groups makes one.

    Values: scale * (code - zero), in float32; ternary: {-negative_scale, 0, scale}.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    scheme: Scheme
    negative_scale: Tensor | None = None
    group_index: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.codes.shape[0], self.codes.shape[1]

    def column_groups(self) -> Tensor:
        """int64 [in]: the group of every column."""
        inputs = self.codes.shape[1]
        if self.group_index is not None:
            return self.group_index.long()
        size = self.scheme.group_size or inputs
        return torch.arange(inputs, device=self.codes.device) // size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] that the codes stand for, computed in float32, given as dtype."""
        groups = self.column_groups()
        scale = self.scale.float()[:, groups]
        if self.scheme.ternary:
            assert self.negative_scale is not None
            negative = self.negative_scale.float()[:, groups]
            zero = torch.zeros_like(scale)
            value = torch.where(self.codes == 2, scale, zero)
            return torch.where(self.codes == 0, -negative, value).to(dtype)
        assert self.zero is not None
        return (scale * (self.codes.float() - self.zero.float()[:, groups])).to(dtype)
