"""Faster operators for forward passes on the CPU, of calibration and of suites that score text.

Float32 linear layers run in the library that is fast on this processor (see quant.products) and
causal attention in cuda_ext.attention: torch's kernel computes the masked scores too and multiplies
with MKL, which does not use AVX-512 on processors that are not made by Intel. Norms, gates and
rotary positions of a model run in one operator each (quant.forward_modules). Results differ from
those of a normal forward pass by rounding only. Timing suites do without: they measure what a user
gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cuda_ext import attention
from quant.forward_modules import faster_modules, operators_here
from quant.products import linear, torch_alone


@contextmanager
def forward_products(kernel: str, model: object = None) -> Iterator[None]:
    """Use the faster operators inside; kernel="reference" leaves everything to torch.

    model has the modules that run faster (quant.forward_modules); None, or what is not a module:
    none of them.
    """
    if kernel == "reference":
        with torch_alone(True):
            yield
        return
    modules = faster_modules(model) if isinstance(model, nn.Module) else nullcontext()
    with torch_alone(False), modules, _FasterCalls():
        yield


class _FasterCalls(TorchFunctionMode):
    """Redirects functional.linear and functional.scaled_dot_product_attention to faster code."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear:
            return linear(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        plain = attn_mask is None and dropout_p == 0 and is_causal and not torch.is_grad_enabled()
        if plain and _takes(query, key, value, enable_gqa):
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            if factor > 0 and math.isfinite(factor) and operators_here():
                return attention.causal_attention(query, key, value, factor)
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )


def _takes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether the operator supports this attention: causal, of a whole sequence to itself."""
    tensors = (query, key, value)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 or t.dim() != 4 for t in tensors):
        return False
    batch, heads, tokens, width = query.shape
    shared = key.shape[1]
    return (
        key.shape == value.shape == (batch, shared, tokens, width)
        and (heads == shared or (enable_gqa and shared > 0 and heads % shared == 0))
        and tokens > 1
        and heads > 0
        and width in attention.WIDTHS
        and all(t.stride(3) == 1 for t in tensors)
    )
