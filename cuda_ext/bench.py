"""`python -m cuda_ext.bench`: packed products beside torch's own, with the machine's roofline.

Needs torch alone. Contenders run in turn in one process, each round every one of them once, over
copies of the weight that together are larger than the last-level cache, so that none finds its
weight there. Bandwidth is that of summing a large array in the same rounds. Times are medians, with
the fastest and the slowest tenth beside them, because other work on the machine shows there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext import packed
from cuda_ext.packed import Packed
from cuda_ext.tiles import LANES, TILE_ROWS, units_for

# Inputs and outputs of one layer of each shape.
SHAPES = {
    "llama-7b-up": (4096, 11008),
    "llama-8b-up": (4096, 14336),
    "llama-70b-up": (8192, 28672),
    "opt-175b-fc2": (49152, 12288),
}
READ_BYTES = 2**28
BITS = (2, 3, 4, 8)
MIN_ROUNDS = 5

Step = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One way to multiply: a step for each copy of the weight, and the bytes that a step reads."""

    name: str
    steps: Sequence[Step]
    bytes: int


@dataclass(frozen=True)
class Row:
    """Milliseconds of one contender (median, 10th and 90th percentile) and what they mean."""

    shape: str
    batch: int
    name: str
    ms: float
    p10_ms: float
    p90_ms: float
    gb_per_s: float
    share: float
    speedup: float


def last_level_cache() -> int:
    """Bytes of the largest cache that Linux names; 64 MiB where it names none."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        scale = {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes, default=64 * 2**20)


def copies_for(size: int, cache: int) -> int:
    """Copies of a weight that make four times the cache, at least two."""
    return max(2, -(-4 * cache // size))


def random_packed(bits: int, inputs: int, outputs: int, group: int, seed: int) -> Packed:
    """A layer of random codes, made in the kernel layout."""
    generator = torch.Generator().manual_seed(seed)
    tiles = -(-outputs // TILE_ROWS)
    grid = (tiles, -(-inputs // group), TILE_ROWS)
    shape = (tiles, units_for(inputs, bits), TILE_ROWS, LANES)
    codes = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, generator=generator)
    scales = (torch.rand(grid, generator=generator) * 0.01 + 0.001).half()
    zeros = torch.randint(0, 2**bits, grid, dtype=torch.uint8, generator=generator)
    return Packed(codes, scales, zeros, None)


def contenders(
    inputs: int, outputs: int, batch: int, group: int, bits: Sequence[int]
) -> list[Contender]:
    """float32 linear first, then the packed products, and beside 4 bits torch's own product."""
    cache = last_level_cache()
    x = torch.randn(batch, inputs, generator=torch.Generator().manual_seed(0))
    activations = 4 * batch * (inputs + outputs)
    found = [_full_precision(x, outputs, cache, activations)]
    for width in bits:
        first = random_packed(width, inputs, outputs, group, 0)
        size = sum(_bytes(part) for part in (first.tiles, first.scales, first.zeros))
        weights = [
            first,
            *(
                random_packed(width, inputs, outputs, group, seed)
                for seed in range(1, copies_for(size, cache))
            ),
        ]
        steps = [_packed_step(x, weight, width, outputs, group) for weight in weights]
        found.append(Contender(f"packed {width} bits", steps, size + activations))
        if width == 4:
            found += _bfloat16(x, weights, outputs, group, cache, activations)
    return found


def _full_precision(x: Tensor, outputs: int, cache: int, activations: int) -> Contender:
    size = 4 * x.shape[1] * outputs
    weights = [torch.randn(outputs, x.shape[1]) for _ in range(copies_for(size, cache))]
    steps = [lambda weight=weight: functional.linear(x, weight) for weight in weights]
    return Contender("float32 linear", steps, size + activations)


def _packed_step(x: Tensor, weight: Packed, bits: int, outputs: int, group: int) -> Step:
    return lambda: packed.linear(x, weight, bits=bits, out_features=outputs, group_size=group)


def _bfloat16(
    x: Tensor, weights: Sequence[Packed], outputs: int, group: int, cache: int, activations: int
) -> list[Contender]:
    """4 bits in bfloat16, here and in torch, whose int4 product is tuned for that dtype."""
    x = x.bfloat16()
    first, inputs = weights[0], x.shape[1]
    size = sum(_bytes(part) for part in (first.tiles, first.scales, first.zeros)) + activations // 2
    ours = [_packed_step(x, weight, 4, outputs, group) for weight in weights]
    codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
    words = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    grid = torch.rand(inputs // group, outputs, 2).bfloat16()
    copies = [words.clone() for _ in range(copies_for(_bytes(words), cache))]
    theirs = [_torch_int4_step(x, copy, group, grid) for copy in copies]
    return [
        Contender("packed 4 bits bfloat16", ours, size),
        Contender("torch int4 bfloat16", theirs, _bytes(words) + _bytes(grid) + activations // 2),
    ]


def _torch_int4_step(x: Tensor, weight: Tensor, group: int, grid: Tensor) -> Step:
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, group, grid)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def measure(rivals: Sequence[Contender], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every contender, in turn, for about `seconds` and at least five rounds."""
    times: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for rival in rivals:
        rival.steps[0]()
    start, turn = time.perf_counter(), 0
    while turn < MIN_ROUNDS or time.perf_counter() - start < seconds:
        for rival in rivals:
            step = rival.steps[turn % len(rival.steps)]
            began = time.perf_counter()
            step()
            times[rival.name].append((time.perf_counter() - began) * 1e3)
        turn += 1
    return times


def bench(
    shape: str, batch: int, *, group: int, bits: Sequence[int], seconds: float
) -> tuple[list[Row], float]:
    """The rows of one shape and batch, and the read bandwidth of the same rounds in GB/s."""
    inputs, outputs = SHAPES[shape]
    array = torch.ones(READ_BYTES // 4)
    reader = Contender("read", [array.sum], READ_BYTES)
    rivals = [reader, *contenders(inputs, outputs, batch, group, bits)]
    times = measure(rivals, seconds)
    # The bandwidth is the best turn of any reader of the run: a sum, or float32 linear.
    readers = [rival for rival in rivals if rival.name in ("read", "float32 linear")]
    bandwidth = max(r.bytes / min(times[r.name]) / 1e6 for r in readers)
    baseline = times["float32 linear"]
    rows = []
    for rival in rivals[1:]:
        values = times[rival.name]
        ms = statistics.median(values)
        tenths = statistics.quantiles(values, n=10)
        rate = rival.bytes / ms / 1e6
        ratio = statistics.median(a / b for a, b in zip(baseline, values, strict=True))
        rows.append(
            Row(shape, batch, rival.name, ms, tenths[0], tenths[-1], rate, rate / bandwidth, ratio)
        )
    return rows, bandwidth


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; --json keeps it with what machine it was."""
    parser = argparse.ArgumentParser(prog="python -m cuda_ext.bench", description=__doc__)
    parser.add_argument("--shapes", default="llama-7b-up", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batches", default="1,4,8,16,64")
    parser.add_argument("--bits", default="2,3,4,8")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each shape and batch")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args(arguments)
    bits = [int(value) for value in options.bits.split(",")]
    unknown = sorted(set(options.shapes.split(",")) - set(SHAPES))
    if unknown or not set(bits) <= set(BITS):
        parser.error(f"shapes are {', '.join(SHAPES)}; bits are 2, 3, 4, 8.")
    machine = {
        "isa": packed.cpu_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "last_level_cache": last_level_cache(),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    kept = []
    for shape in options.shapes.split(","):
        for batch in (int(value) for value in options.batches.split(",")):
            rows, bandwidth = bench(
                shape, batch, group=options.group, bits=bits, seconds=options.seconds
            )
            inputs, outputs = SHAPES[shape]
            print(f"\n{shape} {inputs} -> {outputs}, batch {batch}, reads {bandwidth:.1f} GB/s")
            print(f"{'':24}{'ms':>9}{'p10':>9}{'p90':>9}{'GB/s':>8}{'share':>8}{'speedup':>9}")
            for row in rows:
                print(
                    f"{row.name:24}{row.ms:9.3f}{row.p10_ms:9.3f}{row.p90_ms:9.3f}"
                    f"{row.gb_per_s:8.1f}{row.share:8.0%}{row.speedup:8.2f}x",
                    flush=True,
                )
            kept += [asdict(row) | {"bandwidth_gb_per_s": bandwidth} for row in rows]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": kept}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
