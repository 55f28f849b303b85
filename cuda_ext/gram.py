"""Sums of products of all pairs of columns on the CPU as one operator, bitsweep::add_gram."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cuda_ext import build


@cache
def load() -> None:
    """Build and load the library and register the fake implementation; raises build.BuildError."""
    build.load()
    torch.library.register_fake("bitsweep::add_gram")(_fake_gram)


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add rows^T rows to total, on and above the diagonal, in place.

    total  float32 [inputs, inputs] on the CPU, contiguous. Entries below the diagonal keep their
           value or not (those of the squares that it crosses).
    rows   float32 [tokens, inputs]; the stride of the last dimension is 1. NaN and infinity spread
           to the entries that they are a factor of.

    Sums are float32 in a fixed order, rows of one call before what `total` holds: the bits do not
    depend on the number of threads. A copy of rows is held meanwhile. Raises RuntimeError that
    names the argument that does not fit.
    """
    load()
    if total.device.type != "cpu":  # torch's dispatcher would not name the argument
        raise RuntimeError(
            f"add_gram: total is on {total.device}; this operator is for the CPU, use "
            "torch.mm there."
        )
    torch.ops.bitsweep.add_gram(total, rows)


def _fake_gram(total: Tensor, rows: Tensor) -> None:  # noqa: ARG001
    return None
