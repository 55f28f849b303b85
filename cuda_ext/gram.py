"""Sums of products of all pairs of columns on the CPU: bitsweep::add_gram and add_drift."""

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
    torch.library.register_fake("bitsweep::add_drift")(_fake_drift)


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
    _require_cpu("add_gram", total)
    torch.ops.bitsweep.add_gram(total, rows)


def add_drift(total: Tensor, rows: Tensor, reference: Tensor, upper: bool) -> None:
    """Add (reference - rows)^T rows to total, in place.

    As `add_gram`; reference is like rows, and copied as well. upper: on and above the diagonal
    alone, and some entries below it.
    """
    load()
    _require_cpu("add_drift", total)
    torch.ops.bitsweep.add_drift(total, rows, reference, upper)


def _require_cpu(operator: str, total: Tensor) -> None:
    if total.device.type != "cpu":  # torch's dispatcher would not name the argument
        raise RuntimeError(
            f"{operator}: total is on {total.device}; this operator is for the CPU, use "
            "torch.mm there."
        )


def _fake_gram(total: Tensor, rows: Tensor) -> None:  # noqa: ARG001
    return None


def _fake_drift(total: Tensor, rows: Tensor, reference: Tensor, upper: bool) -> None:  # noqa: ARG001
    return None
