"""HQQ's state dicts written and dequantized by hand, with numpy.

Codes are packed one at a time into Python integers. Every rounding of the compute type is made here
on significant bits: 11 of float16, 8 of bfloat16, 24 of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SIGNIFICANT = {"float16": 11, "bfloat16": 8, "float32": 24}
# By nbits: packing, bits of a code in it, codes of a word, number of codes.
PACKED: dict[float, tuple[str, int, int, int]] = {
    8: ("8bit_u8", 8, 1, 256), 6: ("8bit_u8", 8, 1, 64), 5: ("8bit_u8", 8, 1, 32),
    4: ("4bit_u8", 4, 2, 16), 3: ("3bit_32", 3, 10, 8), 2: ("2bit_u8", 2, 4, 4),
    1.58: ("2bit_u8", 2, 4, 3), 1: ("1bit_u8", 1, 8, 2),
}  # fmt: skip


def state(
    outputs: int, inputs: int, nbits: float, size: int, axis: int, dtype: str, *,
    viewed: bool = False, seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:  # fmt: skip
    """A layer of random codes and grids by the names behind the layer's, and its float32 weight."""
    draw = np.random.default_rng(seed)
    groups = outputs * inputs // size
    shape = (groups, size) if axis == 1 else (size, groups)
    grid = (groups, 1) if axis == 1 else (1, groups)
    packing, bits, together, count = PACKED[nbits]
    codes = draw.integers(0, count, shape)
    scale = rounded(draw.random(grid) / (3 * count) + 0.01 / count, dtype)
    zero = rounded(draw.random(grid) * count, dtype)
    compute = getattr(torch, dtype)
    words = _packed(codes, bits, together)
    stored = torch.from_numpy(words.astype(np.int32 if packing == "3bit_32" else np.uint8))
    found = {
        "W_q": stored.view(compute) if viewed else stored,
        "scale": torch.from_numpy(scale).to(compute),
        "zero": torch.from_numpy(zero).to(compute),
        "shape": torch.tensor([outputs, inputs]),
        "nbits": _number(nbits),
        "group_size": _number(size),
        "axis": _number(axis),
        "packing": _text(packing),
        "compute_dtype": _text(str(compute)),
        "unpack_view_dtype": _text(str(stored.dtype)),
    }
    flags = {"view_as_float": viewed, "channel_wise": True, "quant_scale": False,
             "quant_zero": False, "optimize": True, "round_zero": nbits == 4,
             "offload_meta": False, "encoded_state_dict": True,
             "stores_quant_config": True}  # fmt: skip
    found |= {name: torch.tensor(int(flag), dtype=torch.uint8) for name, flag in flags.items()}
    unit = rounded(codes - zero, dtype)
    values = rounded(unit * scale, dtype).reshape(outputs, inputs)
    return found, torch.from_numpy(values).float()


def rounded(values: Any, dtype: str) -> Any:
    """Values of a type as float64, rounded to float32 first as processors do."""
    exact = np.asarray(values, dtype=np.float32).astype(np.float64)
    _, exponent = np.frexp(exact)
    # Numbers below 2^-14 have fewer significant bits in float16.
    lowest = -13 if dtype == "float16" else -125
    step = np.exp2(np.maximum(exponent, lowest) - float(SIGNIFICANT[dtype]))
    return np.rint(exact / step) * step


def _packed(codes: Any, bits: int, together: int) -> Any:
    """Row r of a word is row r, r + rows, r + 2 * rows, ... of the codes, the first one highest."""
    rows = -(-len(codes) // together)
    words = np.zeros((rows, codes.shape[1]), dtype=np.int64)
    for at, row in enumerate(codes):
        part = at // rows
        words[at % rows] += row.astype(np.int64) * 2 ** (bits * (together - 1 - part))
    return words


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32 if value == 1.58 else torch.int32)


def _text(value: str) -> Tensor:
    return torch.tensor([ord(each) for each in value], dtype=torch.uint8)
