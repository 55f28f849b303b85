"""QuantLinear: a linear layer with packed weights that runs cuda_ext's operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from cuda_ext import codes as packed_codes
from cuda_ext import ops
from cuda_ext import packed as kernel_layout
from cuda_ext.codes import Words
from cuda_ext.layout import codes_at, words_for
from cuda_ext.tiles import can_tile
from quant.input_operator import NAME as OPERATOR
from quant.input_operator import InputOperator
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

Packed = dict[str, Tensor]
KERNEL_BUFFERS = ("tiles", "tile_scales", "tile_zeros", "tile_negative")
KERNEL_SCALES = ("tile_scales", "tile_negative")


def pack(weight: QuantizedWeight) -> Packed:
    """Return the packed buffers of a quantized weight, named and stored as in GPTQ v2.

    qweight is int32 [ceil(in * bits / 32), out]. Uniform levels have scales [groups, out] in the
    scheme's scale_dtype and qzeros int32 [groups, ceil(out * bits / 32)], the true zero-points.
    Ternary levels have scales and scales_negative [groups, out]. Other levels have the tensors that
    quant.levels.base.GridTensor declares. g_idx int32 [in] is present only if the columns of a
    group are not adjacent. qweight is that of a file which the codes were not yet unpacked from.
    """
    words = weight.words
    if words is not None and words.order == packed_codes.COLUMNS:
        packed = {"qweight": words.words}
    else:
        packed = {"qweight": packed_codes.pack_columns(weight.codes, weight.scheme.bits)}
    grid = {name: part.transpose(0, 1).contiguous() for name, part in weight.grid.items()}
    packed |= pack_grid(grid, weight.scheme)
    if weight.group_index is not None:
        packed["g_idx"] = weight.group_index.int()
    return packed


def pack_grid(grid: Mapping[str, Tensor], scheme: Scheme) -> Packed:
    """Return the buffers of a grid [entries, out]: integers packed along the outputs."""
    return {
        each.buffer: packed_codes.pack_rows(grid[each.name].flatten(1), each.bits(scheme))
        if each.code
        else grid[each.name]
        for each in scheme.kind.tensors
    }


def unpack(packed: Packed, scheme: Scheme, in_features: int) -> QuantizedWeight:
    """Return the quantized weight that `pack` packed (exactly); zero-points must be those of v2.

    Its codes stay packed until they are asked for, and lie with its grid in the packed tensors.
    """
    outputs = packed["qweight"].shape[1]
    codes = Words(packed["qweight"], scheme.bits, in_features, packed_codes.COLUMNS)
    grid = {}
    for each in scheme.kind.tensors:
        part = packed[each.buffer]
        if each.code:
            part = packed_codes.unpack_rows(part, each.bits(scheme), outputs * each.count(scheme))
            part = part.reshape(len(part), outputs, *each.entry_shape(scheme))
        grid[each.name] = part
    return QuantizedWeight(
        codes=codes,
        scheme=scheme,
        group_index=packed.get("g_idx"),
        grid={name: part.transpose(0, 1) for name, part in grid.items()},
    )


def unpack_rows(packed: Packed, scheme: Scheme, in_features: int, rows: Tensor) -> QuantizedWeight:
    """Return some outputs of the quantized weight that `pack` packed, in the order of rows [n]."""
    words = packed["qweight"].index_select(1, rows)
    grid = {}
    for each in scheme.kind.tensors:
        part, count = packed[each.buffer], each.count(scheme)
        if each.code:
            places = (rows[:, None] * count + torch.arange(count, device=rows.device)).flatten()
            part = codes_at(part, each.bits(scheme), places)
            part = part.reshape(len(part), len(rows), *each.entry_shape(scheme))
        else:
            part = part.index_select(1, rows)
        grid[each.name] = part.transpose(0, 1).contiguous()
    codes = packed_codes.unpack_columns(words, scheme.bits, in_features)
    return QuantizedWeight(codes, scheme, packed.get("g_idx"), grid)


def packed_shapes(
    scheme: Scheme, in_features: int, out_features: int, *, g_idx: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every buffer of a layer with this scheme, without the bias."""
    groups = scheme.groups(in_features)
    shapes: dict[str, tuple[int, ...]] = {
        "qweight": (words_for(in_features, scheme.bits), out_features)
    }
    for each in scheme.kind.tensors:
        numbers = out_features * each.count(scheme)
        held = (out_features, *each.entry_shape(scheme))
        words = (words_for(numbers, each.bits(scheme)),)
        shapes[each.buffer] = (each.entries(groups), *(words if each.code else held))
    if g_idx:
        shapes["g_idx"] = (in_features,)
    return shapes


def packed_dtypes(scheme: Scheme) -> dict[str, torch.dtype]:
    """Return the name and dtype of every buffer of a layer with this scheme, without the bias."""
    grid = {
        each.buffer: torch.int32 if each.code else getattr(torch, each.storage(scheme))
        for each in scheme.kind.tensors
    }
    return {"qweight": torch.int32, **grid, "g_idx": torch.int32}


def packed_bytes(
    scheme: Scheme, in_features: int, out_features: int, *, g_idx: bool = False
) -> int:
    """Return the total size in bytes of the buffers in `packed_shapes`."""
    dtypes = packed_dtypes(scheme)
    shapes = packed_shapes(scheme, in_features, out_features, g_idx=g_idx)
    return sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())


def takes_kernels(scheme: Scheme, in_features: int, g_idx: Tensor | None = None) -> bool:
    """Whether the compiled kernels multiply with a layer of this scheme directly from its codes.

    They support the built-in levels with 2, 3, 4 or 8 bits and the groups that `can_tile` accepts.
    Other layers are dequantized before every product.
    """
    return scheme.kind.operators and can_tile(scheme.bits, in_features, scheme.group_size, g_idx)


class QuantLinear(nn.Module):
    """y = x @ dequantize().T + bias, computed from the buffers that `pack` makes.

    The layer is for inference: the weight and the bias (None if there is none) are buffers.
    Compiled kernels read the weight in their own layout (cuda_ext.tiles); a layer that runs a
    kernel stores only that layout. GPTQ's buffers (qweight, scales, qzeros or scales_negative,
    g_idx) can still be read as attributes, are the ones in the state dict, and equal what `pack`
    made. Layers that kernels do not support (`takes_kernels`: scattered groups, group sizes that
    are not a multiple of 32, 5, 6 or 7 bits, external levels) keep GPTQ's buffers and are
    dequantized before every product; `way` says so.

    Scales keep their storage dtype through .to(dtype), .half() and .float(), because rounding a
    scale changes every weight of its group; the bias is cast with the model. `requested` is the
    kernel that was asked for, `kernel` is the one that it resolves to on the layer's device. Moving
    the layer to another kind of device resolves it again and raises KernelUnavailable if that
    device has no such kernel.
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
        """Create the layer from `packed` buffers; raises ValueError for a buffer that does not fit.

        If an input_operator is given, it is applied to x before the product, on the layer's device.
        """
        super().__init__()
        self.scheme = scheme
        self.in_features = in_features
        self.out_features = packed["qweight"].shape[1]
        # A loader replaces it, where the files hold other grids than the buffers.
        self.stored_bits = self.out_features * in_features * scheme.bits_per_weight(in_features)
        # Looked up once, because torch.compile may trace forward.
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
        """Whether a compiled kernel computes products directly from the codes."""
        return self._buffers.get("tiles") is not None

    @property
    def way(self) -> str:
        """The kernel, and whether the weight is dequantized for it: "cpu (dequantizes first)"."""
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
        """Create the layer of a quantized weight [out, in] and an optional bias [out]."""
        return cls(pack(weight), weight.scheme, weight.shape[1], bias, kernel)

    def packed(self) -> Packed:
        """Return the packed buffers of this layer by name, as `pack` makes them (no bias)."""
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
        # Called for missing attributes: a layer with a kernel makes GPTQ's buffers on demand.
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
        """Return the quantized weight in memory of its own; inverse of `from_quantized`."""
        held = self.packed() if self.tiled else {n: p.clone() for n, p in self.packed().items()}
        return unpack(held, self.scheme, self.in_features)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight [out, in], computed in float32 and rounded once to dtype."""
        if self.tiled:
            return kernel_layout.dequantize(
                self.kernel_buffers(),
                bits=self.scheme.bits,
                in_features=self.in_features,
                out_features=self.out_features,
                group_size=self.scheme.group_size,
                dtype=dtype,
            )
        if self._decodes or self.kernel == "cpu":  # the bits of the operator, faster
            return unpack(self.packed(), self.scheme, self.in_features).dequantize(dtype)
        return ops.dequantize(
            **self.packed(),
            bits=self.scheme.bits,
            in_features=self.in_features,
            group_size=self.scheme.group_size,
            dtype=dtype,
        )

    def dequantize_rows(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return some outputs of the weight, int64 rows [n] of it, as `dequantize` has them."""
        if not len(rows):
            return torch.empty(0, self.in_features, dtype=dtype, device=rows.device)
        if not self.tiled:
            return unpack_rows(self.packed(), self.scheme, self.in_features, rows).dequantize(dtype)
        return kernel_layout.dequantize(
            kernel_layout.take_rows(self.kernel_buffers(), rows),
            bits=self.scheme.bits,
            in_features=self.in_features,
            out_features=len(rows),
            group_size=self.scheme.group_size,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out] in the dtype of x."""
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
        # The values of the operator, faster; torch.compile traces the operator as it is.
        if self._decodes or (self.kernel == "cpu" and not torch.compiler.is_compiling()):
            return self._decoded_product(x)
        return ops.linear(
            x,
            **self.packed(),
            bits=self.scheme.bits,
            group_size=self.scheme.group_size,
            bias=self.bias,
        )

    def _decoded_product(self, x: Tensor) -> Tensor:
        """Multiply by the dequantized weight in float32 (float64 for float64 x), as ops.linear."""
        ops.check_floats("linear", x)
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
        # Scales keep their dtype: rounding them would change every weight.
        held = {name: self._buffers.get(name) for name in (*scales, *KERNEL_SCALES)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
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
        """Resolve the kernel for the device of the moved buffers, and convert their layout."""
        kernel = ops.resolve_kernel(self.requested, self._device())
        packed = self.packed() if (kernel == "reference") == self.tiled else None
        self.kernel = kernel
        if packed is not None:
            self._hold(packed)
