"""Find the number of rows of x from which dequantizing first is faster than the packed product."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext import packed
from cuda_ext.bench.products import packed_copies, packed_step
from cuda_ext.bench.shapes import sizes
from cuda_ext.bench.timing import Contender, Step, measure
from cuda_ext.packed import Packed

ROWS = {
    "cpu": (16, 64, 128, 192, 256, 512),
    "cuda": (1, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256),
}
DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.float16, torch.bfloat16)}


@dataclass(frozen=True)
class Crossing:
    """Milliseconds of both methods for one dtype and number of rows, medians of turns."""

    shape: str
    bits: int
    dtype: str
    rows: int
    packed_ms: float
    dequantized_ms: float


def most_rows(dtype: torch.dtype, device: str) -> int:
    """Return rows that one packed product takes (cuda_ext.packed, csrc/cuda/kernels.h)."""
    return 64 if device != "cpu" else packed.rows_from_codes(dtype)


def crossover(shape: str, bits: int, group: int, seconds: float, device: str) -> list[Crossing]:
    """Time both methods for every dtype and number of rows, with weights that are not cached.

    More rows than one packed product takes are split into several products.
    """
    inputs, outputs = sizes(shape)
    weights = packed_copies(bits, inputs, outputs, group, device)
    found = []
    for dtype in DTYPES[device]:
        for rows in ROWS[device]:
            x = torch.randn(rows, inputs, device=device).to(dtype)
            packed_steps = [_in_passes(x, w, bits, outputs, group, device) for w in weights]
            whole_steps = [_dequantized(x, w, bits, outputs, group) for w in weights]
            rivals = [
                Contender("packed", packed_steps, 0),
                Contender("dequantized", whole_steps, 0),
            ]
            times = measure(rivals, seconds, device)
            ms = [statistics.median(times[rival.name]) for rival in rivals]
            name = str(dtype).removeprefix("torch.")
            found.append(Crossing(shape, bits, name, rows, *ms))
    return found


def meeting(found: Sequence[Crossing], dtype: str) -> int | None:
    """Return the fewest rows from which dequantizing won at every measured number of rows."""
    best = None
    for crossing in sorted((c for c in found if c.dtype == dtype), key=lambda c: -c.rows):
        if crossing.packed_ms <= crossing.dequantized_ms:
            break
        best = crossing.rows
    return best


def _in_passes(x: Tensor, weight: Packed, bits: int, outputs: int, group: int, device: str) -> Step:
    parts = x.split(most_rows(x.dtype, device))
    steps = [packed_step(part, weight, bits, outputs, group) for part in parts]
    return lambda: [step() for step in steps]


def _dequantized(x: Tensor, weight: Packed, bits: int, outputs: int, group: int) -> Step:
    def run() -> Tensor:
        whole = packed.dequantize(
            weight,
            bits=bits,
            in_features=x.shape[1],
            out_features=outputs,
            group_size=group,
            dtype=x.dtype,
        )
        return functional.linear(x, whole)

    return run
