"""The contenders: torch's full-precision product, packed products, torch's int4 product."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cuda_ext import packed
from cuda_ext.bench.timing import Contender, Step, copies_for, last_level_cache
from cuda_ext.packed import Packed
from cuda_ext.tiles import LANES, TILE_ROWS, units_for

READ_BYTES = {"cpu": 2**28, "cuda": 2**30}
FULL = {"cpu": torch.float32, "cuda": torch.float16}  # full precision, and the dtype of x
INT4_GROUPS = (32, 64, 128, 256)  # groups that torch's int4 products take


def full_precision_name(device: str) -> str:
    """Return the name of the full-precision contender."""
    return f"{str(FULL[device]).removeprefix('torch.')} linear"


def random_packed(
    bits: int, inputs: int, outputs: int, group: int, seed: int, device: str = "cpu"
) -> Packed:
    """Return a layer of random codes in the kernel layout."""
    generator = torch.Generator(device).manual_seed(seed)
    tiles = -(-outputs // TILE_ROWS)
    grid = (tiles, -(-inputs // group), TILE_ROWS)
    shape = (tiles, units_for(inputs, bits), TILE_ROWS, LANES)
    made = {"device": device, "generator": generator}
    codes = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, **made)  # type: ignore[call-overload]
    scales = (torch.rand(grid, **made) * 0.01 + 0.001).half()  # type: ignore[call-overload]
    zeros = torch.randint(0, 2**bits, grid, dtype=torch.uint8, **made)  # type: ignore[call-overload]
    return Packed(codes, scales, zeros, None)


def packed_copies(bits: int, inputs: int, outputs: int, group: int, device: str) -> list[Packed]:
    """Return layers of random codes that together exceed the last-level cache."""
    first = random_packed(bits, inputs, outputs, group, 0, device)
    size = bytes_of(first.tiles, first.scales, first.zeros)
    seeds = range(1, copies_for(size, last_level_cache(device)))
    more = (random_packed(bits, inputs, outputs, group, seed, device) for seed in seeds)
    return [first, *more]


def readers(device: str) -> list[Contender]:
    """Return the contenders that measure bandwidth: a sum, and on CUDA a copy (read and write)."""
    array = torch.ones(READ_BYTES[device] // 4, device=device)
    found = [Contender("read", [array.sum], READ_BYTES[device])]
    if device != "cpu":
        other = torch.empty_like(array)
        found.append(Contender("copy", [lambda: other.copy_(array)], 2 * READ_BYTES[device]))
    return found


def contenders(
    inputs: int, outputs: int, batch: int, group: int, bits: Sequence[int], device: str = "cpu"
) -> list[Contender]:
    """Return full precision, then the packed products; for 4 bits also torch's int4 product."""
    x = _random_x(batch, inputs, device)
    found = [_full_precision(x, outputs, device)]
    for width in bits:
        weights = packed_copies(width, inputs, outputs, group, device)
        found.append(_packed(f"packed {width} bits", x, weights, width, outputs, group))
        if width == 4 and group in INT4_GROUPS:
            half = x.bfloat16()
            found.append(_packed("packed 4 bits bfloat16", half, weights, 4, outputs, group))
            found.append(_torch_int4(half, outputs, group, device))
    return found


def isa_contenders(
    inputs: int, outputs: int, batch: int, group: int, bits: Sequence[int]
) -> list[Contender]:
    """Return float32 linear and the packed products of every instruction set of this processor."""
    x = _random_x(batch, inputs, "cpu")
    best = packed.ISAS.index(packed.cpu_isa())
    found = [_full_precision(x, outputs, "cpu")]
    for width in bits:
        weights = packed_copies(width, inputs, outputs, group, "cpu")
        for isa in reversed(packed.ISAS[: best + 1]):
            plain = _packed(f"packed {width} bits {isa}", x, weights, width, outputs, group)
            steps = [_with_isa(isa, step) for step in plain.steps]
            found.append(Contender(plain.name, steps, plain.bytes))
    return found


def bytes_of(*tensors: Tensor | None) -> int:
    """Return the total bytes of the tensors."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def packed_step(x: Tensor, weight: Packed, bits: int, outputs: int, group: int) -> Step:
    """Return a step that computes one packed product."""
    return lambda: packed.linear(x, weight, bits=bits, out_features=outputs, group_size=group)


def _random_x(batch: int, inputs: int, device: str) -> Tensor:
    x = torch.randn(batch, inputs, generator=torch.Generator().manual_seed(0))
    return x.to(device, FULL[device])


def _activations(x: Tensor, outputs: int) -> int:
    return bytes_of(x) * (x.shape[-1] + outputs) // x.shape[-1]


def _full_precision(x: Tensor, outputs: int, device: str) -> Contender:
    size = x.element_size() * x.shape[1] * outputs
    weights = [
        torch.randn(outputs, x.shape[1], device=device, dtype=x.dtype)
        for _ in range(copies_for(size, last_level_cache(device)))
    ]
    steps = [lambda weight=weight: functional.linear(x, weight) for weight in weights]
    return Contender(full_precision_name(device), steps, size + _activations(x, outputs))


def _packed(
    name: str, x: Tensor, weights: Sequence[Packed], bits: int, outputs: int, group: int
) -> Contender:
    first = weights[0]
    size = bytes_of(first.tiles, first.scales, first.zeros) + _activations(x, outputs)
    steps = [packed_step(x, weight, bits, outputs, group) for weight in weights]
    return Contender(name, steps, size)


def _with_isa(isa: str, step: Step) -> Step:
    def run() -> object:
        os.environ["BITSWEEP_CPU_ISA"] = isa
        try:
            return step()
        finally:
            del os.environ["BITSWEEP_CPU_ISA"]

    return run


def _torch_int4(x: Tensor, outputs: int, group: int, device: str) -> Contender:
    """Return torch's int4 product, which takes bfloat16."""
    inputs, aten = x.shape[1], torch.ops.aten
    if device == "cpu":
        codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
        words = aten._convert_weight_to_int4pack_for_cpu(codes, 2)
        product = aten._weight_int4pack_mm_for_cpu
    else:
        pairs = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
        words = aten._convert_weight_to_int4pack(pairs, 8)
        product = aten._weight_int4pack_mm
    grid = torch.rand(inputs // group, outputs, 2, device=device).bfloat16()
    copies = [words.clone() for _ in range(copies_for(bytes_of(words), last_level_cache(device)))]
    steps = [lambda copy=copy: product(x, copy, group, grid) for copy in copies]
    size = bytes_of(words, grid) + _activations(x, outputs)
    return Contender("torch int4 bfloat16", steps, size)
