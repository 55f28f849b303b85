"""Calibration in float64: blocks compute in double precision, whatever dtype the model requests.

Float64 sums, and functions such as exp, differ between instruction sets, thread counts and batch
sizes by about 1e-15. Rounding an intermediate value to a narrower dtype would turn some of these
differences into large ones, so a model that requests float32 (in a norm, for rotary angles) gets
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from quant.products import say_once

WIDE = torch.float64
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
_LOOK_UPS = (functional.embedding, torch.embedding)
# These compute nothing. Their results may be written to, so they must keep the same memory.
_VIEWS = """
    detach data view view_as reshape t T mT transpose permute movedim squeeze unsqueeze expand
    expand_as narrow select chunk split unbind flatten unflatten diagonal contiguous clone copy_
    requires_grad_ size dim numel stride data_ptr is_contiguous untyped_storage storage_offset
    element_size is_floating_point is_complex __getitem__ __len__ __get__ __set__ register_hook
    tolist item
"""
_NAMES_OF_VIEWS = frozenset(_VIEWS.split())


class WideCalls(TorchFunctionMode):
    """Makes calls of torch inside the context compute in float64.

    Parameters keep their dtype and are converted where they are used, so that weights stay exactly
    representable in the model's dtype.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _CASTS:
            return Tensor.to(args[0], WIDE)
        if func in _LOOK_UPS:  # convert the rows that are read, not the whole table
            return widened(func(*args, **kwargs))
        if name in _NAMES_OF_VIEWS:
            return func(*args, **kwargs)
        # In-place functions write to their first argument.
        kept = args[:1] if name.endswith("_") and not name.endswith("__") else ()
        kept = args[:1] if name in ("__setitem__", "__iadd__", "__imul__", "__isub__") else kept
        out = {"out": kwargs["out"]} if "out" in kwargs else {}
        given = (*kept, *_wide(args[len(kept) :]))
        result = func(*given, **{**_wide(kwargs), **out})
        return result if kept or out else _wide(result)


def widened(value: Any) -> Any:
    """Return value with every floating-point tensor in it as float64, and all else unchanged."""
    return _mapped(value, lambda tensor: tensor.to(WIDE) if tensor.dtype in _NARROW else tensor)


def narrowed(value: Any, dtype: torch.dtype) -> Any:
    """Return value with every float64 tensor in it as `dtype`."""
    return _mapped(value, lambda tensor: tensor.to(dtype) if tensor.dtype == WIDE else tensor)


@contextmanager
def wide_buffers(model: PreTrainedModel) -> Iterator[None]:
    """Recompute in float64 the buffers that the model computes itself (rotary frequencies).

    They come from functions such as pow, whose float32 results differ between instruction sets, and
    rotary angles multiply the difference by the position. Persistent buffers are part of the
    checkpoint and stay unchanged.
    """
    replaced: list[tuple[nn.Module, dict[str, Tensor]]] = []
    for name, module in model.named_modules():
        made = {
            key: buffer
            for key, buffer in module._buffers.items()
            if key in module._non_persistent_buffers_set
            and buffer is not None
            and buffer.dtype in _NARROW
        }
        if made:
            replaced.append((module, made))
            module._buffers.update(_computed_again(model, name, module, made))
    try:
        yield
    finally:
        for module, made in replaced:
            module._buffers.update(made)


def _computed_again(
    model: PreTrainedModel, name: str, module: nn.Module, made: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Compute buffers in float64 as transformers does for a model without weights.

    The model's function for that would also fill parameters with random numbers, so it gets a
    module without children whose parameters are on the meta device.
    """
    wide = {key: buffer.to(WIDE) for key, buffer in made.items()}
    shell = object.__new__(type(module))
    shell.__dict__.update(module.__dict__)
    shell._modules = {}
    shell._parameters = {
        key: each if each is None else nn.Parameter(torch.empty_like(each, device="meta"))
        for key, each in module._parameters.items()
    }
    shell._buffers = {**module._buffers, **{key: each.clone() for key, each in wide.items()}}
    try:
        with torch.no_grad(), WideCalls():
            model._init_weights(shell)
    except Exception as error:  # the model's own code may raise anything
        say_once(
            f"buffers of {name} ({type(module).__name__}) are converted to float64, not recomputed "
            f"({type(error).__name__}: {error}): codes may depend on the machine."
        )
        return wide
    return {
        key: _the_same(shell._buffers[key], each, made[key].dtype) for key, each in wide.items()
    }


def _the_same(found: Tensor | None, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the recomputed buffer, unless the model's own values differ from it."""
    if found is None or found.shape != expected.shape or found.dtype != WIDE:
        return expected
    allowed = 32 * torch.finfo(dtype).eps
    return found if torch.allclose(found, expected, rtol=allowed, atol=0) else expected


def _wide(value: Any) -> Any:
    """Apply `widened`, and replace dtypes in arguments by float64."""
    if isinstance(value, torch.dtype):
        return WIDE if value in _NARROW else value
    return widened(value) if isinstance(value, Tensor) else _mapped_inside(value, _wide)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return _mapped_inside(value, lambda each: _mapped(each, change))


def _mapped_inside(value: Any, change: Callable[[Any], Any]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(change(each) for each in value)
    if type(value) is dict:
        return {key: change(each) for key, each in value.items()}
    return value
