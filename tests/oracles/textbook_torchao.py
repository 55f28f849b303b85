"""torchao's state dicts written and dequantized by hand, with numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def state(
    outputs: int, inputs: int, bits: int, size: int, dtype: torch.dtype, *,
    symmetric: bool = True, seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """A layer of random codes in int8, by the names behind the layer's, and its float32 weight."""
    draw = np.random.default_rng(seed)
    groups = inputs // size
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = draw.integers(low, high, (outputs, inputs), dtype=np.int8)
    zero = draw.integers(low, high, (outputs, groups), dtype=np.int8)
    if symmetric:
        zero[:] = 0
    scale = _random(draw, (outputs, groups), bits, dtype)
    found = {
        "_weight_qdata": torch.from_numpy(codes),
        "_weight_scale": scale,
        "_weight_zero_point": torch.from_numpy(zero),
    }
    steps = codes.astype(np.float32) - np.repeat(zero, size, 1).astype(np.float32)
    return found, torch.from_numpy(steps * np.repeat(scale.float().numpy(), size, 1))


def state_int4(
    outputs: int, inputs: int, size: int, dtype: torch.dtype, *, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """A layer of the plain int4 layout; the last group may be short."""
    draw = np.random.default_rng(seed)
    groups = math.ceil(inputs / size)
    codes = draw.integers(-8, 8, (outputs, inputs))
    packed = [
        [(int(row[at]) % 16) + 16 * (int(row[at + 1]) % 16) for at in range(0, inputs, 2)]
        for row in codes
    ]
    scale = _random(draw, (groups, outputs), 4, dtype)
    zero = torch.from_numpy(draw.normal(0, 0.02, (groups, outputs))).to(dtype)
    found = {
        "_weight_qdata": torch.tensor(packed, dtype=torch.uint8).view(torch.int8),
        "_weight_scale": scale,
        "_weight_zero_point": zero,
    }
    by_column = [np.repeat(each.float().numpy().T, size, 1)[:, :inputs] for each in (scale, zero)]
    values = codes.astype(np.float32) * by_column[0] + by_column[1]
    return found, torch.from_numpy(values)


def _random(draw: Any, shape: tuple[int, int], bits: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy((draw.random(shape) + 0.2) / (4 * 2**bits)).to(dtype)
