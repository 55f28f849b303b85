"""Operators on GPTQ's own buffers (schema, fake implementation, checks), and kernel resolution.

Compiled kernels read their own layout through cuda_ext.packed. `bitsweep::dequantize` and
`bitsweep::linear` are the reference kernel, which also runs layers that compiled kernels do not
support (scattered or small groups, 5 to 7 bits): it dequantizes the weight, then multiplies. Both
take the buffers of one layer with `in` inputs, `out` outputs and `groups` groups:

qweight          int32 [ceil(in * bits / 32), out], the codes, packed along the inputs
                 (cuda_ext.layout).
scales           floating point [groups, out].
qzeros           int32 [groups, ceil(out * bits / 32)], the true zero-points (v2); None if ternary.
scales_negative  ternary only, [groups, out] like scales: code 0 means -scales_negative, 1 means 0,
                 2 means scales.
g_idx            int32 [in], the group of every input; None: input i is in group i // group_size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cuda_ext import kernels, packed, reference
from cuda_ext.kernels import KERNELS, KernelUnavailable
from cuda_ext.layout import BIT_WIDTHS, words_for

__all__ = [
    "KERNELS",
    "KernelUnavailable",
    "check_floats",
    "dequantize",
    "linear",
    "resolve_kernel",
    "why_unavailable",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def resolve_kernel(name: str, device: str | torch.device = "cpu") -> str:
    """Resolve `name` like cuda_ext.kernels.resolve_kernel, but always load the library.

    For processes that run kernels.
    """
    return kernels.choose(
        name, str(torch.device(device)), lambda where: why_unavailable(torch.device(where))
    )


def why_unavailable(device: torch.device) -> str | None:
    """Return why the compiled kernels cannot run on a device, in one sentence; None if they can.

    Finds or builds the library and loads it, unless the machine has no device of that kind.
    """
    return kernels.why_unavailable(str(device), packed.load)


def dequantize(
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None = None,
    *,
    bits: int,
    in_features: int,
    group_size: int | None = None,
    scales_negative: Tensor | None = None,
    g_idx: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the weight [out, in] of packed buffers, computed in float32 and rounded once to dtype.

    group_size None means one group for the whole row. Raises TypeError or ValueError that names the
    argument and its value.
    """
    size = in_features if group_size is None else group_size
    result: Tensor = torch.ops.bitsweep.dequantize(
        qweight, scales, qzeros, scales_negative, g_idx, bits, in_features, size, dtype
    )
    return result


def linear(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None = None,
    *,
    bits: int,
    group_size: int | None = None,
    scales_negative: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return x [..., in] @ weight.T + bias for packed buffers: [..., out] in the dtype of x.

    Dequantizes, then multiplies in float32 (float64 for float64 x). group_size None means one group
    for the whole row; bias is [out]. Raises like `dequantize`.
    """
    size = x.shape[-1] if group_size is None else group_size
    result: Tensor = torch.ops.bitsweep.linear(
        x, qweight, scales, qzeros, scales_negative, g_idx, bias, bits, size
    )
    return result


@torch.library.custom_op("bitsweep::dequantize", mutates_args=())
def _dequantize(
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
    _check_weight(
        "dequantize",
        (qweight, scales, qzeros, scales_negative, g_idx),
        bits,
        in_features,
        group_size,
    )
    if dtype not in FLOATS:
        raise TypeError(f"dequantize: dtype={dtype} is not one of {_names(FLOATS)}.")
    return reference.dequantize(
        qweight, scales, qzeros, scales_negative, g_idx, bits, in_features, group_size, dtype
    )


@_dequantize.register_fake
def _(
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
    buffers = (qweight, scales, qzeros, scales_negative, g_idx)
    _check_weight("dequantize", buffers, bits, in_features, group_size)
    return scales.new_empty((scales.shape[1], in_features), dtype=dtype)


@torch.library.custom_op("bitsweep::linear", mutates_args=())
def _linear(
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
    buffers = (qweight, scales, qzeros, scales_negative, g_idx)
    _check_input(x, bias, buffers, bits, group_size)
    return reference.linear(
        x, qweight, scales, qzeros, scales_negative, g_idx, bias, bits, group_size
    )


@_linear.register_fake
def _(
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
    buffers = (qweight, scales, qzeros, scales_negative, g_idx)
    _check_input(x, bias, buffers, bits, group_size)
    return x.new_empty((*x.shape[:-1], scales.shape[1]))


Buffers = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def check_floats(op: str, x: Tensor) -> None:
    """Raise TypeError for x of a dtype that is not floating point."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: x is {x.dtype}; pass one of {_names(FLOATS)}.")


def _check_input(
    x: Tensor, bias: Tensor | None, buffers: Buffers, bits: int, group_size: int
) -> None:
    """Check x and bias of `linear`; TypeError or ValueError names the argument."""
    op = "linear"
    check_floats(op, x)
    if x.dim() == 0:
        raise ValueError(f"{op}: x is a scalar; pass x as [..., in].")
    _check_weight(op, buffers, bits, x.shape[-1], group_size)
    scales = buffers[1]
    _check_device(op, "x", x, buffers[0])
    if bias is not None:
        _check_tensor(op, "bias", bias, FLOATS, (scales.shape[1],))
        _check_device(op, "bias", bias, buffers[0])


def _check_weight(op: str, buffers: Buffers, bits: int, in_features: int, group_size: int) -> None:
    """Check the packed buffers, for both operators."""
    qweight, scales, qzeros, negative, g_idx = buffers
    if bits not in BIT_WIDTHS:
        raise ValueError(f"{op}: bits={bits} is not a bit width; choose one of 2 to 8.")
    if group_size < 1:
        raise ValueError(f"{op}: group_size={group_size}; pass at least 1, or None for one group.")
    if scales.dim() != 2:
        raise ValueError(f"{op}: scales are {list(scales.shape)}; expected [groups, out].")
    if (qzeros is None) == (negative is None):
        given = "both" if qzeros is not None else "neither"
        raise ValueError(
            f"{op}: {given} of qzeros (uniform levels) and scales_negative (ternary levels) given; "
            "pass exactly one."
        )
    groups, outputs = scales.shape
    if g_idx is None and groups != -(-in_features // group_size):
        raise ValueError(
            f"{op}: scales have {groups} groups, but {in_features} inputs in groups of "
            f"{group_size} make {-(-in_features // group_size)}; pass the matching group_size, "
            "or g_idx."
        )
    words = words_for(in_features, bits)
    _check_tensor(op, "qweight", qweight, (torch.int32,), (words, outputs))
    _check_tensor(op, "scales", scales, FLOATS, (groups, outputs))
    if qzeros is not None:
        shape = (groups, words_for(outputs, bits))
        _check_tensor(op, "qzeros", qzeros, (torch.int32,), shape)
    if negative is not None:
        if bits != 2:
            raise ValueError(f"{op}: bits={bits} with scales_negative; ternary codes take 2 bits.")
        _check_tensor(op, "scales_negative", negative, (scales.dtype,), (groups, outputs))
    if g_idx is not None:
        _check_tensor(op, "g_idx", g_idx, (torch.int32,), (in_features,))
    names = ("scales", "qzeros", "scales_negative", "g_idx")
    for name, tensor in zip(names, buffers[1:], strict=True):
        if tensor is not None:
            _check_device(op, name, tensor, qweight)


def _check_tensor(
    op: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]
) -> None:
    if tensor.dtype not in dtypes:
        raise TypeError(f"{op}: {name} is {tensor.dtype}; pass {_names(dtypes)}.")
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{op}: {name} is {list(tensor.shape)}; expected {list(shape)} for these bits, inputs "
            "and groups."
        )


def _check_device(op: str, name: str, tensor: Tensor, qweight: Tensor) -> None:
    if tensor.device != qweight.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device} and qweight on {qweight.device}; move the layer "
            "and its input to one device."
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
