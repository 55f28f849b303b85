"""Operators on the kernel layout (cuda_ext.tiles), registered by the compiled library.

bitsweep::packed_linear, bitsweep::packed_dequantize and bitsweep::repack have one schema for all
devices. The library has their CPU kernels and, if it was built with nvcc, their CUDA kernels; the
fake implementations here let torch.compile trace them. The layout is the same on every device.
Buffers of one layer with `in` inputs, `out` outputs and `groups` groups:

tiles     int32 [ceil(out / 8), units, 8, 16], the codes.
scales    float32, float16 or bfloat16 [ceil(out / 8), groups, 8].
zeros     uint8 like scales, the zero-points; None for ternary levels.
negative  like scales, ternary only: code 0 means -negative, 1 means 0, 2 means scales.

A group is the whole row or a multiple of 32 adjacent inputs (tiles.can_tile).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext import build
from cuda_ext.layout import pack_codes, unpack_codes
from cuda_ext.tiles import LANES, TILE_ROWS, tile_grid, units_for, untile_codes, untile_grid

_log = logging.getLogger("cuda_ext")

ISAS = ("portable", "avx2", "avx512", "avx512vnni")
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Packed:
    """The tensors of one layer in the kernel layout."""

    tiles: Tensor
    scales: Tensor
    zeros: Tensor | None
    negative: Tensor | None


@cache
def load() -> build.Library:
    """Build and load the library and register the fake implementations; raises build.BuildError."""
    library = build.load()
    torch.library.register_fake("bitsweep::packed_linear")(_fake_linear)
    torch.library.register_fake("bitsweep::packed_dequantize")(_fake_dequantize)
    torch.library.register_fake("bitsweep::repack")(_fake_repack)
    return library


def cpu_isa() -> str:
    """Return the instruction set of the CPU kernels: the best here, or BITSWEEP_CPU_ISA.

    Raises RuntimeError for an instruction set that is unknown or not available.
    """
    load()
    return ISAS[torch.ops.bitsweep.cpu_isa()]


def pack(
    qweight: Tensor,
    scales: Tensor,
    qzeros: Tensor | None,
    scales_negative: Tensor | None,
    *,
    bits: int,
    in_features: int,
) -> Packed:
    """Convert GPTQ buffers (cuda_ext.ops) to the kernel layout, on their device."""
    load()
    tiles = torch.ops.bitsweep.repack(qweight.contiguous(), bits, in_features)
    zeros = None
    if qzeros is not None:
        zeros = tile_grid(unpack_codes(qzeros, bits, scales.shape[1]))
    negative = None if scales_negative is None else tile_grid(scales_negative)
    return Packed(tiles, tile_grid(scales), zeros, negative)


def unpack(packed: Packed, *, bits: int, in_features: int, out_features: int) -> dict[str, Tensor]:
    """Convert back to the GPTQ buffers, by name; the exact inverse of `pack`."""
    codes = untile_codes(packed.tiles, bits, in_features, out_features)
    found = {
        "qweight": pack_codes(codes.t(), bits, dim=0),
        "scales": untile_grid(packed.scales, out_features),
    }
    if packed.zeros is not None:
        found["qzeros"] = pack_codes(untile_grid(packed.zeros, out_features), bits)
    if packed.negative is not None:
        found["scales_negative"] = untile_grid(packed.negative, out_features)
    return found


def take_rows(packed: Packed, rows: Tensor) -> Packed:
    """Return a layer of some outputs of another, int64 rows [n], whose codes stay packed."""
    tile, place = rows // TILE_ROWS, rows % TILE_ROWS

    def taken(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        some = part[tile, :, place]  # [n, units or groups, ...]
        some = torch.cat([some, some.new_zeros((-len(rows) % TILE_ROWS, *some.shape[1:]))])
        found: Tensor = some.unflatten(0, (-1, TILE_ROWS)).transpose(1, 2)
        return found.contiguous()

    tiles, scales = taken(packed.tiles), taken(packed.scales)
    assert tiles is not None
    assert scales is not None
    return Packed(tiles, scales, taken(packed.zeros), taken(packed.negative))


def linear(
    x: Tensor,
    packed: Packed,
    *,
    bits: int,
    out_features: int,
    group_size: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return x [..., in] @ weight.T + bias: [..., out] in the dtype of x, summed in float32.

    x is float32, bfloat16 or float16. On the CPU up to `rows_from_codes` rows are multiplied
    directly from the codes, on CUDA up to 64 rows of float16 or bfloat16. More rows are multiplied
    by the weight dequantized to the dtype of x, and so is every float32 x on CUDA, which has no
    kernel for it (logged once). float64, which no kernel supports, is multiplied in float64 by the
    dequantized weight. Raises RuntimeError that names the argument that does not fit.
    """
    size = x.shape[-1] if group_size is None else group_size
    if x.is_cuda and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        _say_once(
            "float32 on CUDA: the weight is dequantized before every product, because the packed "
            "kernels take float16 and bfloat16; cast the model (model.dtype) to use them."
        )
    if _unpacked_first(x):
        _check_bias(bias, out_features)
        weight = dequantize(
            packed,
            bits=bits,
            in_features=x.shape[-1],
            out_features=out_features,
            group_size=size,
            dtype=x.dtype,
        )
        # Through Python, where faster products may take its place (quant.forward_products).
        return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    result: Tensor = torch.ops.bitsweep.packed_linear(
        x,
        packed.tiles,
        packed.scales,
        packed.zeros,
        packed.negative,
        bias,
        bits,
        out_features,
        size,
    )
    return result


def rows_from_codes(dtype: torch.dtype) -> int:
    """The most rows of x of a dtype that the CPU multiplies directly from the codes."""
    load()
    found: int = torch.ops.bitsweep.rows_from_codes(dtype)
    return found


def _check_bias(bias: Tensor | None, outputs: int) -> None:
    """Refuse what the operator refuses."""
    if bias is not None and not bias.is_floating_point():
        raise RuntimeError(f"packed_linear: bias is {bias.dtype}; pass a floating-point one.")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise RuntimeError(f"packed_linear: bias is {list(bias.shape)}; expected [{outputs}].")


def _unpacked_first(x: Tensor) -> bool:
    """Whether a product is faster, or only possible, with the weight unpacked before it."""
    if x.dtype == torch.float64:
        return True
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.dtype not in _KERNEL_DTYPES:
        return False  # where the operator decides
    rows = x.numel() // max(x.shape[-1], 1)
    return rows > 1 and rows > rows_from_codes(x.dtype)


@cache
def _say_once(message: str) -> None:
    _log.warning(message)


def dequantize(
    packed: Packed,
    *,
    bits: int,
    in_features: int,
    out_features: int,
    group_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the weight [out, in], computed in float32 and rounded once to dtype."""
    kernel_dtype = torch.float32 if dtype == torch.float64 else dtype
    weight = torch.ops.bitsweep.packed_dequantize(
        packed.tiles,
        packed.scales,
        packed.zeros,
        packed.negative,
        bits,
        in_features,
        out_features,
        in_features if group_size is None else group_size,
        kernel_dtype,
    )
    result: Tensor = weight.to(dtype)
    return result


def _fake_linear(
    x: Tensor,
    tiles: Tensor,  # noqa: ARG001
    scales: Tensor,  # noqa: ARG001
    zeros: Tensor | None,  # noqa: ARG001
    negative: Tensor | None,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    bits: int,  # noqa: ARG001
    out_features: int,
    group_size: int,  # noqa: ARG001
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _fake_dequantize(
    tiles: Tensor,
    scales: Tensor,  # noqa: ARG001
    zeros: Tensor | None,  # noqa: ARG001
    negative: Tensor | None,  # noqa: ARG001
    bits: int,  # noqa: ARG001
    in_features: int,
    out_features: int,
    group_size: int,  # noqa: ARG001
    dtype: torch.dtype,
) -> Tensor:
    return tiles.new_empty((out_features, in_features), dtype=dtype)


def _fake_repack(qweight: Tensor, bits: int, in_features: int) -> Tensor:
    tiles = -(-qweight.shape[1] // TILE_ROWS)
    return qweight.new_empty((tiles, units_for(in_features, bits), TILE_ROWS, LANES))
