"""QuantLinear: a linear layer that holds packed buffers and runs through cuda_ext's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from cuda_ext import ops
from cuda_ext.layout import pack_codes, unpack_codes, words_for
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

Packed = dict[str, Tensor]
GRID = ("scales", "scales_negative")


def pack(weight: QuantizedWeight) -> Packed:
    """The packed buffers of a quantized weight, as GPTQ v2 names and stores them.

    qweight int32 [ceil(in * bits / 32), out]; scales [groups, out] in the scheme's scale_dtype;
    qzeros int32 [groups, ceil(out * bits / 32)], the true zero-points, or for ternary
    scales_negative [groups, out]; g_idx int32 [in] only when the groups are not neighbours.
    """
    bits = weight.scheme.bits
    packed = {
        "qweight": pack_codes(weight.codes.t(), bits, dim=0),
        "scales": weight.scale.t().contiguous(),
    }
    if weight.zero is not None:
        packed["qzeros"] = pack_codes(weight.zero.t(), bits)
    if weight.negative_scale is not None:
        packed["scales_negative"] = weight.negative_scale.t().contiguous()
    if weight.group_index is not None:
        packed["g_idx"] = weight.group_index.int()
    return packed


def unpack(packed: Packed, scheme: Scheme, in_features: int) -> QuantizedWeight:
    """The quantized weight that `pack` packed, exactly; for v2 zeros, as `pack` makes them."""
    scales = packed["scales"]
    qzeros, negative = packed.get("qzeros"), packed.get("scales_negative")
    zero = None if qzeros is None else unpack_codes(qzeros, scheme.bits, scales.shape[1])
    codes = unpack_codes(packed["qweight"], scheme.bits, in_features, dim=0)
    return QuantizedWeight(
        codes=codes.t().contiguous(),
        scale=scales.t().contiguous(),
        zero=None if zero is None else zero.t().contiguous(),
        scheme=scheme,
        negative_scale=None if negative is None else negative.t().contiguous(),
        group_index=packed.get("g_idx"),
    )


def packed_shapes(
    scheme: Scheme, in_features: int, out_features: int, *, g_idx: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every buffer that a layer of this scheme has; bias not included."""
    groups = -(-in_features // (scheme.group_size or in_features))
    shapes: dict[str, tuple[int, ...]] = {
        "qweight": (words_for(in_features, scheme.bits), out_features),
        "scales": (groups, out_features),
    }
    if scheme.ternary:
        shapes["scales_negative"] = (groups, out_features)
    else:
        shapes["qzeros"] = (groups, words_for(out_features, scheme.bits))
    if g_idx:
        shapes["g_idx"] = (in_features,)
    return shapes


class QuantLinear(nn.Module):
    """y = x @ dequantize().T + bias over the buffers that `pack` makes.

    qweight, scales, qzeros or scales_negative, g_idx (None when groups are neighbours) and bias
    (None without one) are buffers: the layer is for inference. Scales keep their storage dtype
    through .to(dtype), .half() and .float(), because rounding them changes every weight; the bias
    follows the model. kernel is the resolved name of the operator that `forward` runs.
    """

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor | None
    scales_negative: Tensor | None
    g_idx: Tensor | None
    bias: Tensor | None

    def __init__(
        self, packed: Packed, scheme: Scheme, in_features: int, bias: Tensor | None, kernel: str
    ) -> None:
        """Hold the buffers of `packed`; ValueError naming the buffer that does not fit."""
        super().__init__()
        self.scheme = scheme
        self.in_features = in_features
        self.out_features = packed["scales"].shape[1]
        self.kernel = ops.resolve_kernel(kernel)
        shapes = packed_shapes(scheme, in_features, self.out_features, g_idx="g_idx" in packed)
        found = {name: tuple(tensor.shape) for name, tensor in packed.items()}
        if found != shapes:
            raise ValueError(
                f"packed buffers {found} do not fit {scheme.name} with {in_features} inputs and "
                f"{self.out_features} outputs; expected {shapes}."
            )
        for name in ("qweight", "scales", "qzeros", "scales_negative", "g_idx"):
            self.register_buffer(name, packed.get(name))
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_quantized(
        cls, weight: QuantizedWeight, bias: Tensor | None = None, kernel: str = "auto"
    ) -> Self:
        """The layer of a quantized weight [out, in] and an optional bias [out]."""
        return cls(pack(weight), weight.scheme, weight.shape[1], bias, kernel)

    def packed(self) -> Packed:
        """The packed buffers that this layer has, by name; bias not included."""
        names = ("qweight", "scales", "qzeros", "scales_negative", "g_idx")
        return {name: buffer for name in names if (buffer := getattr(self, name)) is not None}

    def quantized_weight(self) -> QuantizedWeight:
        """The quantized weight that the buffers hold, unpacked; inverse of `from_quantized`."""
        return unpack(self.packed(), self.scheme, self.in_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in], computed in float32 and rounded once to dtype."""
        return ops.dequantize(
            self.qweight,
            self.scales,
            self.qzeros,
            bits=self.scheme.bits,
            in_features=self.in_features,
            group_size=self.scheme.group_size,
            scales_negative=self.scales_negative,
            g_idx=self.g_idx,
            dtype=dtype,
            kernel=self.kernel,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out], in the dtype of x."""
        return ops.linear(
            x,
            self.qweight,
            self.scales,
            self.qzeros,
            bits=self.scheme.bits,
            group_size=self.scheme.group_size,
            scales_negative=self.scales_negative,
            g_idx=self.g_idx,
            bias=self.bias,
            kernel=self.kernel,
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self.scheme.name}, kernel={self.kernel}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: getattr(self, name) for name in GRID if getattr(self, name) is not None}
        super()._apply(fn, recurse)
        for name, exact in kept.items():
            moved = getattr(self, name)
            if moved.dtype != exact.dtype:
                setattr(self, name, exact.to(moved.device))
        return self
