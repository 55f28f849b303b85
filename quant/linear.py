"""QuantLinear: a linear layer that holds packed buffers and runs through cuda_ext's operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from cuda_ext import ops
from cuda_ext import packed as kernel_layout
from cuda_ext.layout import pack_codes, unpack_codes, words_for
from cuda_ext.tiles import can_tile
from quant.input_operator import NAME as OPERATOR
from quant.input_operator import InputOperator
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

Packed = dict[str, Tensor]
KERNEL_BUFFERS = ("tiles", "tile_scales", "tile_zeros", "tile_negative")
KERNEL_SCALES = ("tile_scales", "tile_negative")


def pack(weight: QuantizedWeight) -> Packed:
    """The packed buffers of a quantized weight, as GPTQ v2 names and stores them.

    qweight int32 [ceil(in * bits / 32), out]; for uniform levels scales [groups, out] in the
    scheme's scale_dtype and qzeros int32 [groups, ceil(out * bits / 32)], the true zero-points; for
    ternary ones scales and scales_negative [groups, out]; others as quant.levels.base.GridTensor
    declares them. g_idx int32 [in] only when the groups are not neighbours.
    """
    packed = {"qweight": pack_codes(weight.codes.t(), weight.scheme.bits, dim=0)}
    grid = {name: part.transpose(0, 1).contiguous() for name, part in weight.grid.items()}
    packed |= pack_grid(grid, weight.scheme)
    if weight.group_index is not None:
        packed["g_idx"] = weight.group_index.int()
    return packed


def pack_grid(grid: Mapping[str, Tensor], scheme: Scheme) -> Packed:
    """The buffers of a grid [entries, out]: integers packed along the outputs, others as they are.

    Where an entry holds several numbers, [entries, out, values], integers are packed along both.
    """
    return {
        each.buffer: pack_codes(grid[each.name].flatten(1), each.bits(scheme))
        if each.code
        else grid[each.name]
        for each in scheme.kind.tensors
    }


def unpack(packed: Packed, scheme: Scheme, in_features: int) -> QuantizedWeight:
    """The quantized weight that `pack` packed, exactly; for v2 zeros, as `pack` makes them."""
    bits, outputs = scheme.bits, packed["qweight"].shape[1]
    codes = unpack_codes(packed["qweight"], bits, in_features, dim=0)
    grid = {}
    for each in scheme.kind.tensors:
        part = packed[each.buffer]
        if each.code:
            part = unpack_codes(part, each.bits(scheme), outputs * each.count(scheme))
            part = part.reshape(len(part), outputs, *each.behind(scheme))
        grid[each.name] = part
    return QuantizedWeight(
        codes=codes.t().contiguous(),
        scheme=scheme,
        group_index=packed.get("g_idx"),
        grid={name: part.transpose(0, 1).contiguous() for name, part in grid.items()},
    )


def packed_shapes(
    scheme: Scheme, in_features: int, out_features: int, *, g_idx: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every buffer that a layer of this scheme has; bias not included."""
    groups = scheme.groups(in_features)
    shapes: dict[str, tuple[int, ...]] = {
        "qweight": (words_for(in_features, scheme.bits), out_features)
    }
    for each in scheme.kind.tensors:
        numbers = out_features * each.count(scheme)
        held = (out_features, *each.behind(scheme))
        words = (words_for(numbers, each.bits(scheme)),)
        shapes[each.buffer] = (each.entries(groups), *(words if each.code else held))
    if g_idx:
        shapes["g_idx"] = (in_features,)
    return shapes


def packed_dtypes(scheme: Scheme) -> dict[str, torch.dtype]:
    """Name and type of every buffer that a layer of this scheme may have; bias not included."""
    grid = {
        each.buffer: torch.int32 if each.code else getattr(torch, each.storage(scheme))
        for each in scheme.kind.tensors
    }
    return {"qweight": torch.int32, **grid, "g_idx": torch.int32}


def packed_bytes(
    scheme: Scheme, in_features: int, out_features: int, *, g_idx: bool = False
) -> int:
    """Bytes of the buffers in `packed_shapes`."""
    dtypes = packed_dtypes(scheme)
    shapes = packed_shapes(scheme, in_features, out_features, g_idx=g_idx)
    return sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())


def takes_kernels(scheme: Scheme, in_features: int, g_idx: Tensor | None = None) -> bool:
    """Whether the compiled kernels multiply with a layer of this scheme straight from its codes.

    They take the levels that they know, in 2, 3, 4 or 8 bits and groups that `can_tile` admits.
    Other layers are dequantized before every product.
    """
    return scheme.kind.operators and can_tile(scheme.bits, in_features, scheme.group_size, g_idx)


class QuantLinear(nn.Module):
    """y = x @ dequantize().T + bias over the buffers that `pack` makes.

    The layer is for inference: bias (None without one) and the weight are buffers. A compiled
    kernel reads the weight from its own layout (cuda_ext.tiles), and then only that is held; the
    names of GPTQ's buffers (qweight, scales, qzeros or scales_negative, g_idx) still read as what
    `pack` made, and the state dict holds those. What kernels do not take (`takes_kernels`:
    scattered groups or groups that are no multiple of 32, 5, 6 or 7 bits, levels of others) stays
    in GPTQ's buffers and is dequantized before every product; `way` says so.

    Scales keep their storage dtype through .to(dtype), .half() and .float(), because rounding them
    changes every weight; the bias follows the model. `requested` is the kernel that was asked for
    and `kernel` the one that it stands for on the layer's device: moving the layer to another kind
    of device resolves it again, and KernelUnavailable says what is missing there.
    """

    bias: Tensor | None
    input_operator: InputOperator | None

    def __init__(
        self,
        packed: Packed,
        scheme: Scheme,
        in_features: int,
        bias: Tensor | None,
        kernel: str,
        input_operator: InputOperator | None = None,
    ) -> None:
        """Hold the buffers of `packed`; ValueError naming the buffer that does not fit.

        What the input_operator makes of x is multiplied, on the device and kernel of the layer.
        """
        super().__init__()
        self.scheme = scheme
        self.in_features = in_features
        self.out_features = packed["qweight"].shape[1]
        # Looked up once: a product, which torch.compile may trace, asks for neither.
        grid = (each.buffer for each in scheme.kind.tensors)
        self._names = ("qweight", *grid, "g_idx")
        self._decodes = not scheme.kind.operators
        self.requested = kernel
        self.kernel = ops.resolve_kernel(kernel, packed["qweight"].device)
        self._hold(packed)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.register_module(OPERATOR, input_operator)

    @property
    def tiled(self) -> bool:
        """Whether products are taken straight from the codes, by a compiled kernel."""
        return self._buffers.get("tiles") is not None

    @property
    def way(self) -> str:
        """The kernel, and whether it is given a dequantized weight: "cpu (dequantizes first)"."""
        plain = self.tiled or self.kernel == "reference"
        return self.kernel if plain else f"{self.kernel} (dequantizes first)"

    def _hold(self, packed: Packed) -> None:
        shapes = packed_shapes(
            self.scheme, self.in_features, self.out_features, g_idx="g_idx" in packed
        )
        found = {name: tuple(tensor.shape) for name, tensor in packed.items()}
        if found != shapes:
            raise ValueError(
                f"packed buffers {found} do not fit {self.scheme.name} with {self.in_features} "
                f"inputs and {self.out_features} outputs; expected {shapes}."
            )
        for name in (*self._names, *KERNEL_BUFFERS):
            self._buffers.pop(name, None)
        tiled = takes_kernels(self.scheme, self.in_features, packed.get("g_idx"))
        if self.kernel == "reference" or not tiled:
            for name in self._names:
                self.register_buffer(name, packed.get(name))
            return
        held = kernel_layout.pack(
            packed["qweight"],
            packed["scales"],
            packed.get("qzeros"),
            packed.get("scales_negative"),
            bits=self.scheme.bits,
            in_features=self.in_features,
        )
        tensors = (held.tiles, held.scales, held.zeros, held.negative)
        for name, tensor in zip(KERNEL_BUFFERS, tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def kernel_buffers(self) -> kernel_layout.Packed:
        """The tensors that a compiled kernel reads; only for a layer that is `tiled`."""
        return kernel_layout.Packed(*(self._buffers[name] for name in KERNEL_BUFFERS))  # type: ignore[arg-type]

    @classmethod
    def from_quantized(
        cls, weight: QuantizedWeight, bias: Tensor | None = None, kernel: str = "auto"
    ) -> Self:
        """The layer of a quantized weight [out, in] and an optional bias [out]."""
        return cls(pack(weight), weight.scheme, weight.shape[1], bias, kernel)

    def packed(self) -> Packed:
        """The packed buffers of this layer as `pack` makes them, by name; bias not included."""
        if self.tiled:
            return kernel_layout.unpack(
                self.kernel_buffers(),
                bits=self.scheme.bits,
                in_features=self.in_features,
                out_features=self.out_features,
            )
        held = {name: self._buffers.get(name) for name in self._names}
        return {name: buffer for name, buffer in held.items() if buffer is not None}

    def __getattr__(self, name: str) -> Any:
        # Called for what is not held: with a kernel, GPTQ's buffers are made when they are read.
        if name in self.__dict__.get("_names", ()) and self.tiled:
            return self.packed().get(name)
        return super().__getattr__(name)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self.tiled:
            destination.update({prefix + name: part for name, part in self.packed().items()})
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        parts = {name: state_dict.get(prefix + name) for name in self._names}
        if not self.tiled or parts["qweight"] is None:
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        device = self._buffers["tiles"].device  # type: ignore[union-attr]
        self._hold({name: part.to(device) for name, part in parts.items() if part is not None})
        others = {
            key: value
            for key, value in state_dict.items()
            if key.removeprefix(prefix) not in self._names
        }
        super()._load_from_state_dict(others, prefix, *rest)

    def quantized_weight(self) -> QuantizedWeight:
        """The quantized weight that the buffers hold, unpacked; inverse of `from_quantized`."""
        return unpack(self.packed(), self.scheme, self.in_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in], computed in float32 and rounded once to dtype."""
        if self.tiled:
            return kernel_layout.dequantize(
                self.kernel_buffers(),
                bits=self.scheme.bits,
                in_features=self.in_features,
                out_features=self.out_features,
                group_size=self.scheme.group_size,
                dtype=dtype,
            )
        if self._decodes:
            return self.quantized_weight().dequantize(dtype)
        return ops.dequantize(
            **self.packed(),
            bits=self.scheme.bits,
            in_features=self.in_features,
            group_size=self.scheme.group_size,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] to [..., out], in the dtype of x."""
        if self.input_operator is not None:
            x = self.input_operator(x)
        if self.tiled:
            return kernel_layout.linear(
                x,
                self.kernel_buffers(),
                bits=self.scheme.bits,
                out_features=self.out_features,
                group_size=self.scheme.group_size,
                bias=self.bias,
            )
        if self._decodes:
            return self._decoded_product(x)
        return ops.linear(
            x,
            **self.packed(),
            bits=self.scheme.bits,
            group_size=self.scheme.group_size,
            bias=self.bias,
        )

    def _decoded_product(self, x: Tensor) -> Tensor:
        """As ops.linear: in float32, or float64 for float64 x."""
        compute = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(compute)
        weight = self.dequantize().to(compute)
        return functional.linear(x.to(compute), weight, bias).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scheme={self.scheme.name}, kernel={self.way}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self._device()
        scales = [each.buffer for each in self.scheme.kind.tensors if not each.code]
        # Rounding these changes every weight.
        held = {name: self._buffers.get(name) for name in (*scales, *KERNEL_SCALES)}
        super()._apply(fn, recurse)
        for name, exact in held.items():
            moved = self._buffers.get(name)
            if exact is not None and moved is not None and moved.dtype != exact.dtype:
                setattr(self, name, exact.to(moved.device))
        if self._device().type not in (before.type, "meta"):
            self._follow()
        return self

    def _device(self) -> torch.device:
        held = self._buffers["tiles" if self.tiled else "qweight"]
        return held.device  # type: ignore[union-attr]

    def _follow(self) -> None:
        """Take the kernel of the device that the buffers have moved to, and the layout it reads."""
        kernel = ops.resolve_kernel(self.requested, self._device())
        packed = self.packed() if (kernel == "reference") == self.tiled else None
        self.kernel = kernel
        if packed is not None:
            self._hold(packed)
