"""Causal attention in float32 on the CPU as one operator, bitsweep::causal_attention."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cuda_ext import build

# Supported head widths; csrc/attention.cpp refuses others.
WIDTHS = range(16, 257, 16)


@cache
def load() -> None:
    """Build and load the library and register the fake implementation; raises build.BuildError."""
    build.load()
    torch.library.register_fake("bitsweep::causal_attention")(_fake_attention)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return softmax(scale * query @ key^T) @ value, where no token attends to a later one.

    query  float32 [batch, heads, tokens, width] on the CPU, at least one token; width is one of
           WIDTHS.
    key    float32 [batch, kv_heads, tokens, width], kv_heads a divisor of heads: head h of query
           uses head h // (heads // kv_heads). value has the same shape. Strides are free except the
           last, which is 1.
    scale  positive and finite.

    Returns float32 [batch, heads, tokens, width], stored as [batch, tokens, heads, width], so that
    `.transpose(1, 2).reshape(batch, tokens, -1)` makes no copy. Scores, the online softmax (arXiv
    1805.02867) and sums are float32 in a fixed order: the bits do not depend on the number of
    threads. It needs memory for one strip of queries per thread, 148 KiB at most. A NaN in query or
    key makes the rows that see it NaN; a NaN in value makes its column NaN in these rows, and
    possibly in the 15 rows before. Raises RuntimeError that names the argument that does not fit.
    """
    load()
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.device.type != "cpu":  # torch's dispatcher would not name the argument
            raise RuntimeError(
                f"causal_attention: {name} is on {tensor.device}; this operator is for the CPU, "
                "use torch.nn.functional.scaled_dot_product_attention there."
            )
    result: Tensor = torch.ops.bitsweep.causal_attention(query, key, value, scale)
    return result


def _fake_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:  # noqa: ARG001
    batch, heads, tokens, width = query.shape
    return query.new_empty((batch, tokens, heads, width)).transpose(1, 2)
