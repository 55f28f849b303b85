"""Rows times a Hadamard matrix on the CPU: bitsweep::hadamard."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cuda_ext import build


@cache
def load() -> None:
    """Build and load the library and register the fake implementation; raises build.BuildError."""
    build.load()
    torch.library.register_fake("bitsweep::hadamard")(_fake)


def hadamard(x: Tensor, core: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
    """Return x diag(factors) (core^T (x) S) for x [..., n], with S Sylvester's matrix.

    x        float32 or float64 on the CPU, contiguous.
    core     [order, order] of 1 and -1 in x's dtype, contiguous; None: order 1. n is order times
             a power of two.
    factors  [blocks, n], contiguous: row i of x is multiplied by row i % blocks; None: 1.

    Sums have a fixed order: the bits do not depend on threads or the instruction set. Raises
    RuntimeError that names the argument that does not fit.
    """
    load()
    if x.device.type != "cpu":  # torch's dispatcher would not name the argument
        raise RuntimeError(
            f"hadamard: x is on {x.device}; this operator is for the CPU, use torch.mm there."
        )
    result: Tensor = torch.ops.bitsweep.hadamard(x, core, factors)
    return result


def _fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)
