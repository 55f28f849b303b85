"""Quantized weights with random codes and grids, made without any solver."""

from __future__ import annotations

import torch

from quant.scheme import Scheme
from quant.weight import QuantizedWeight


def random_weight(
    scheme: Scheme, outputs: int, inputs: int, *, scattered: bool = False, seed: int = 0
) -> QuantizedWeight:
    """Every code, zero-point and scale drawn at random; scattered: with a group_index."""
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.groups(inputs)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(0, scheme.max_code + 1, shape, dtype=torch.uint8, generator=generator)

    def scales() -> torch.Tensor:
        values = torch.rand(outputs, groups, generator=generator) * 0.2 + 0.01
        return values.to(getattr(torch, scheme.scale_dtype))

    zero = None if scheme.levels == "ternary" else codes(outputs, groups)
    if scheme.symmetric:
        zero = torch.full((outputs, groups), 2 ** (scheme.bits - 1), dtype=torch.uint8)
    index = torch.arange(inputs) // (scheme.group_size or inputs)
    return QuantizedWeight(
        codes=codes(outputs, inputs),
        scale=scales(),
        zero=zero,
        scheme=scheme,
        negative_scale=scales() if scheme.levels == "ternary" else None,
        group_index=index[torch.randperm(inputs, generator=generator)].int() if scattered else None,
    )


def same(left: QuantizedWeight, right: QuantizedWeight) -> bool:
    """Whether two quantized weights are the same in every field, bit for bit."""

    def equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        if a is None or b is None:
            return a is b
        return a.dtype == b.dtype and torch.equal(a, b)

    fields = ("codes", "scale", "zero", "negative_scale", "group_index")
    return left.scheme == right.scheme and all(
        equal(getattr(left, field), getattr(right, field)) for field in fields
    )
