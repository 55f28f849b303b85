"""FactoredLinear: a linear layer that multiplies a factored weight as it is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn

from quant.input_operator import NAME as OPERATOR
from quant.input_operator import InputOperator
from quant.linear import QuantLinear
from quant.weight import FactoredWeight


class FactoredLinear(nn.Module):
    """y = x W^T + bias, computed from the tensors of a FactoredWeight in every pass.

    As in QuantLinear, all tensors are buffers, those of the weight keep their dtype when the model
    is cast, and products are computed in float32 (float64 for such x) and rounded to the dtype of
    x. No dense copy of the weight is kept. `way` says how products are computed.
    """

    bias: Tensor | None
    input_operator: InputOperator | None

    def __init__(
        self,
        weight: FactoredWeight,
        bias: Tensor | None = None,
        input_operator: InputOperator | None = None,
    ) -> None:
        """Create the layer; an input_operator is applied to x before the product."""
        super().__init__()
        self.form, self.scheme = weight.form, weight.scheme
        self.out_features, self.in_features = weight.shape
        self.stored_bits = float(weight.bits)
        self.way = weight.form.way
        for name, tensor in weight.tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_module(OPERATOR, input_operator)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {name: self._buffers[name] for name in self.form.tensors}  # type: ignore[misc]

    def quantized_weight(self) -> FactoredWeight:
        """Return the weight that the layer was made from."""
        return FactoredWeight(self.form, self._tensors, self.scheme)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in], computed in float32 and rounded once to dtype."""
        return self.form.dense(self._tensors).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out] in the dtype of x."""
        if self.input_operator is not None:
            x = self.input_operator(x)
        compute = torch.promote_types(x.dtype, torch.float32)
        y = self.form.product(x.to(compute), self._tensors)
        if self.bias is not None:
            y = y + self.bias.to(compute)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, form={self.form.name}, bits={self.stored_bits:.0f}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self._tensors
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        for name, tensor in exact.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self


# The layers that multiply a weight as it is stored.
PackedLinear: TypeAlias = QuantLinear | FactoredLinear
