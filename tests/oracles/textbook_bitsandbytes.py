"""bitsandbytes' state dicts written and dequantized by hand, one weight at a time, in float64.

FP4 is computed from the bits of a code; NF4 is the table of QLoRA's appendix E. Every rounding to
float32 that bitsandbytes makes is made here with numpy.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def fp4(code: int) -> float:
    """Sign, exponent (2 bits) and mantissa (1 bit) of a code; 12 is the largest magnitude.

    The exponents 0, 1, 2 and 3 are 0 (subnormal), 2^3, 2^2 and 2^1; one subnormal is 1/16.
    """
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    value = mantissa / 16 if exponent == 0 else 2.0 ** (4 - exponent) * (1 + mantissa / 2)
    return (-value if sign else value) / 12


TABLES = {"nf4": NF4, "fp4": tuple(fp4(code) for code in range(16))}


def state_4bit(
    kind: str, outputs: int, inputs: int, *, nested: bool, blocksize: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """A layer of random codes and scales, by the names behind the layer's."""
    draw = np.random.default_rng(seed)
    count = outputs * inputs
    blocks = math.ceil(count / blocksize)
    said: dict[str, Any] = {
        "quant_type": kind, "blocksize": blocksize, "dtype": "float32", "shape": [outputs, inputs],
    }  # fmt: skip
    found = {
        "weight": torch.from_numpy(
            draw.integers(0, 256, (math.ceil(count / 2), 1), dtype=np.uint8)
        ),
        "weight.quant_map": torch.tensor(TABLES[kind], dtype=torch.float32),
    }
    if nested:
        said |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1234567}
        found["weight.absmax"] = torch.from_numpy(draw.integers(0, 256, blocks, dtype=np.uint8))
        scales = draw.random(math.ceil(blocks / 256), dtype=np.float32) / 10 + np.float32(0.01)
        found["weight.nested_absmax"] = torch.from_numpy(scales)
        found["weight.nested_quant_map"] = torch.linspace(-0.99, 1, 256)
    else:
        found["weight.absmax"] = torch.from_numpy(draw.random(blocks, dtype=np.float32) / 5 + 0.01)
    text = json.dumps(said).encode()
    found[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    return found


def state_8bit(outputs: int, inputs: int, seed: int = 0) -> dict[str, Tensor]:
    """A layer of LLM.int8 with random codes and scales."""
    draw = np.random.default_rng(seed)
    return {
        "weight": torch.from_numpy(draw.integers(-127, 128, (outputs, inputs), dtype=np.int8)),
        "SCB": torch.from_numpy(draw.random(outputs, dtype=np.float32) / 5 + np.float32(0.01)),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def state(kind: str, outputs: int, inputs: int, *, nested: bool, seed: int) -> dict[str, Tensor]:
    """A layer of any kind."""
    if kind == "int8":
        return state_8bit(outputs, inputs, seed)
    return state_4bit(kind, outputs, inputs, nested=nested, seed=seed)


def dequantized(stored: dict[str, Tensor]) -> Tensor:
    """The float32 weight [out, in] of a layer."""
    if "SCB" in stored:
        by_127 = float(np.float32(1) / np.float32(127))
        rows = [
            [_single(_single(int(code) * float(scale)) * by_127) for code in row]
            for row, scale in zip(stored["weight"], stored["SCB"], strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float32)
    (name,) = (name for name in stored if "quant_state" in name)
    said = json.loads(bytes(stored[name].tolist()))
    table = TABLES[said["quant_type"]]
    scales = [_scale(stored, said, at) for at in range(len(stored["weight.absmax"]))]
    packed = stored["weight"].contiguous().view(torch.uint8).flatten().tolist()
    outputs, inputs = said["shape"]
    values = []
    for at in range(outputs * inputs):
        byte = packed[at // 2]
        code = byte >> 4 if at % 2 == 0 else byte & 15
        values.append(_single(_single(table[code]) * scales[at // said["blocksize"]]))
    return torch.tensor(values, dtype=torch.float32).view(outputs, inputs)


def _scale(stored: dict[str, Tensor], said: dict[str, Any], block: int) -> float:
    absmax = stored["weight.absmax"][block]
    if "nested_offset" not in said:
        return float(absmax)
    entry = float(stored["weight.nested_quant_map"][int(absmax)])
    of_block = float(stored["weight.nested_absmax"][block // said["nested_blocksize"]])
    kept = {"float32": np.float32, "float16": np.float16}[said["nested_dtype"]]
    value = float(kept(_single(entry * of_block)))
    return float(kept(value + float(kept(said["nested_offset"]))))


def _single(value: float) -> float:
    return float(np.float32(value))
