"""FactoredWeight: a weight stored as a product; FactoredLinear: the layer that multiplies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn

from quant.budget import Budget
from quant.forms.base import Form
from quant.input_operator import NAME as OPERATOR
from quant.input_operator import InputOperator
from quant.linear import QuantLinear
from quant.weight import QuantizedWeight


@dataclass(frozen=True)
class FactoredWeight:
    """A weight [out, in] in a form other than codes on a grid, as a method made it.

    form     how the tensors make the weight (quant.forms).
    tensors  by the names that the form declares, as they are stored.
    scheme   the budget that the method was given; `bits` is what the tensors take.

    Raises ValueError for tensors that cannot be such a weight.
    """

    form: Form
    tensors: Mapping[str, Tensor]
    scheme: Budget

    def __post_init__(self) -> None:
        reason = self.form.check(self.tensors)
        if reason is not None:
            raise ValueError(f"a weight of the form {self.form.name} {reason}")

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.form.shape(self.tensors)

    @property
    def bits(self) -> int:
        """Stored bits of all tensors."""
        return sum(8 * tensor.nbytes for tensor in self.tensors.values())

    def to(self, device: torch.device | str) -> FactoredWeight:
        """Return the same weight with all tensors on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return FactoredWeight(self.form, moved, self.scheme)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in], computed in float32 and rounded once to dtype."""
        return self.form.dense(self.tensors).to(dtype)


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


# What a method makes of a weight, and the layers that multiply it as it is stored.
AnyWeight: TypeAlias = QuantizedWeight | FactoredWeight
PackedLinear: TypeAlias = QuantLinear | FactoredLinear
