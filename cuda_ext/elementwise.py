"""What lies between the products of a block, in float32 on the CPU, each as one operator.

bitsweep::rms_norm, gated and rotated read and write memory once, where torch makes a result for
every multiplication. The same bits with any number of threads.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cuda_ext import build


@cache
def load() -> None:
    """Build and load the library and register fake implementations; raises build.BuildError."""
    build.load()
    for name, fake in (("rms_norm", _first), ("gated", _first), ("rotated", _rotated)):
        torch.library.register_fake(f"bitsweep::{name}")(fake)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + epsilon) * weight for x [..., n] and weight [n], contiguous."""
    load()
    result: Tensor = torch.ops.bitsweep.rms_norm(_here("rms_norm", "x", x), weight, epsilon)
    return result


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return gate / (1 + e^-gate) * up for tensors of one shape, contiguous."""
    load()
    result: Tensor = torch.ops.bitsweep.gated(_here("gated", "gate", gate), up)
    return result


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return x with rotary positions: the halves of a head's width are the pairs that turn.

    x             [batch, heads, tokens, width], stored as [batch, tokens, heads, width] (tokens and
                  sequences may lie apart), as the result is.
    cosine, sine  [batch or 1, tokens, width], contiguous, of the angles.

    Raises RuntimeError that names the argument that does not fit, as the other functions do.
    """
    load()
    result: Tensor = torch.ops.bitsweep.rotated(_here("rotated", "x", x), cosine, sine)
    return result


def _here(operator: str, name: str, tensor: Tensor) -> Tensor:
    if tensor.device.type != "cpu":  # torch's dispatcher would not name the argument
        raise RuntimeError(
            f"{operator}: {name} is on {tensor.device}; this operator is for the CPU, use torch's "
            "own there."
        )
    return tensor


def _first(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:  # noqa: ARG001
    batch, heads, tokens, width = x.shape
    return x.new_empty((batch, tokens, heads, width)).transpose(1, 2)
