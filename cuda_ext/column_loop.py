"""GPTQ's inner column loop as one operator, bitsweep::gptq_column_loop, on the CPU and on CUDA."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cuda_ext import build


@cache
def load() -> None:
    """Build and load the library and register the fake implementation; raises build.BuildError."""
    build.load()
    torch.library.register_fake("bitsweep::gptq_column_loop")(_fake_column_loop)


def gptq_column_loop(
    weight: Tensor,
    upper: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    negative: Tensor | None = None,
    group: Tensor | None = None,
    count: int,
    max_code: int,
) -> tuple[Tensor, Tensor]:
    """Quantize the first `count` columns of a block one after the other (GPTQ, Algorithm 1).

    weight  float32 [columns, rows], contiguous: columns of a layer's weight in loop order. The
            first `count` are replaced by their quantized values; the later ones are updated with
            every error.
    upper   float32 [columns, columns], this block of U with H^-1 = U^T U; rows may be strided.
    scale   float32 [groups, rows]; zero has the same shape, with the zero-points. Ternary levels
            have `negative` instead, the magnitude of code 0.
    group   int32 [count], the group of each column; None means a single group.

    Returns codes uint8 [count, rows] and errors float32 [count, rows], (w - q) / U_jj, for the
    update of columns after the block. Every step rounds as defined in csrc/shared/column_loop.h, on
    every device. The result therefore equals the plain PyTorch loop on the CPU bit for bit, if
    addcmul_ is fused there (x86 with AVX2; on CUDA torch rounds the product first). Raises
    RuntimeError that names the argument that does not fit. On CUDA the values of `group` are not
    checked; the caller must ensure their range.
    """
    load()
    result: tuple[Tensor, Tensor] = torch.ops.bitsweep.gptq_column_loop(
        weight, upper, scale, zero, negative, group, count, max_code
    )
    return result


def _fake_column_loop(
    weight: Tensor,
    upper: Tensor,  # noqa: ARG001
    scale: Tensor,  # noqa: ARG001
    zero: Tensor | None,  # noqa: ARG001
    negative: Tensor | None,  # noqa: ARG001
    group: Tensor | None,  # noqa: ARG001
    count: int,
    max_code: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    rows = weight.shape[1]
    return weight.new_empty((count, rows), dtype=torch.uint8), weight.new_empty((count, rows))
