"""Layers of NVFP4 and MXFP4 as compressed-tensors stores them, written and dequantized by hand.

Every number is computed from its bits: E2M1 and E8M0 as the OCP Microscaling Formats specification
1.0 has them, E4M3 as the OCP 8-bit Floating Point specification 1.0 (the variant without
infinities). float32 roundings are made with numpy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GROUPS = {"nvfp4": 16, "mxfp4": 32}


def e2m1(code: int) -> float:
    """Sign, two bits of exponent with bias 1, one bit of mantissa."""
    exponent, mantissa = code >> 1 & 3, code & 1
    value = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -value if code & 8 else value


def e4m3(byte: int) -> float:
    """Sign, four bits of exponent with bias 7, three bits of mantissa; 127 and 255 are NaN."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return float("nan")
    value = mantissa * 2.0**-9 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8)
    return -value if byte & 128 else value


def e8m0(byte: int) -> float:
    """A power of two with bias 127; 255 is NaN."""
    return float("nan") if byte == 255 else 2.0 ** (byte - 127)


def state(
    kind: str, outputs: int, inputs: int, *, seed: int, inputs_too: bool = False
) -> dict[str, Tensor]:
    """A layer of random codes and scales, by the names behind the layer's."""
    draw = np.random.default_rng(seed)
    packed = draw.integers(0, 256, (outputs, inputs // 2), dtype=np.uint8)
    shape = (outputs, inputs // GROUPS[kind])
    found = {"weight_packed": torch.from_numpy(packed)}
    if kind == "nvfp4":
        scales = torch.from_numpy(draw.integers(64, 127, shape, dtype=np.uint8))
        found["weight_scale"] = scales.view(torch.float8_e4m3fn)
        whole = np.float32(draw.random() * 1000 + 3000)
        found["weight_global_scale"] = torch.tensor([whole], dtype=torch.float32)
        if inputs_too:
            found["input_global_scale"] = torch.tensor([123.0])
    else:
        found["weight_scale"] = torch.from_numpy(draw.integers(118, 124, shape, dtype=np.uint8))
    return found


def dequantized(stored: dict[str, Tensor]) -> Tensor:
    """The float32 weight [out, in] of a layer."""
    scales = stored["weight_scale"].view(torch.uint8).tolist()
    whole = stored.get("weight_global_scale")
    rows = []
    for row, of_row in zip(stored["weight_packed"].tolist(), scales, strict=True):
        codes = [code for byte in row for code in (byte & 15, byte >> 4)]
        size = len(codes) // len(of_row)
        values = []
        for at, code in enumerate(codes):
            byte = of_row[at // size]
            if whole is None:
                scale = np.float32(e8m0(byte))
            else:
                scale = np.float32(e4m3(byte)) / np.float32(float(whole))
            values.append(float(np.float32(e2m1(code)) * scale))
        rows.append(values)
    return torch.tensor(rows, dtype=torch.float32)
