"""Norms, gates and rotary positions of a model in one operator each (cuda_ext.elementwise).

A model's own code makes a result for every multiplication: on the CPU a norm reads and writes its
input five times. What a module does is recognised by doing it, not by its name: the forward
function of its class runs on a stand-in that has nothing but the attributes of the pattern, and the
result is compared with the textbook's. Anything else (an offset of the weight, another activation)
fails the comparison, or misses an attribute, and stays with torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from cuda_ext import elementwise
from quant.products import say_once, why_no_operators

ROTATE = "apply_rotary_pos_emb"  # the function of transformers' models, one in each of their files
_Forward = Callable[..., Any]
# What runs instead of a module's own forward, for modules that were seen before; None: nothing.
_known: WeakKeyDictionary[nn.Module, _Forward | None] = WeakKeyDictionary()


@contextmanager
def faster_modules(model: nn.Module) -> Iterator[None]:
    """Run norms, gates and rotary positions of `model` by the faster operators inside.

    They take float32 on the CPU without gradients; everything else calls the model's own code.
    """
    with ExitStack() as stack:
        # On another device nothing would be taken.
        if any(each.device.type in ("cpu", "meta") for each in model.parameters()):
            for module in model.modules():
                if "forward" not in module.__dict__ and (faster := _faster(module)) is not None:
                    module.__dict__["forward"] = partial(faster, module)
                    stack.callback(module.__dict__.pop, "forward", None)
            for names in _files(model):
                stack.callback(names.__setitem__, ROTATE, names[ROTATE])
                names[ROTATE] = _rotating(names[ROTATE])
        yield


def operators_here() -> bool:
    """Whether the operators are available and faster; logs the reason if not."""
    reason = why_no_operators()
    if reason is not None:
        say_once(
            "causal attention, norms, gates and rotary positions run in torch, not in operators of "
            f"bitsweep: {reason} Results differ by rounding only."
        )
    return reason is None


def _faster(module: nn.Module) -> _Forward | None:
    if module not in _known:
        _known[module] = _norm if _is_norm(module) else _gate if _is_gate(module) else None
    return _known[module]


def _norm(module: Any, x: Tensor) -> Any:
    if not (_plain(x) and _plain(module.weight) and x.is_contiguous() and operators_here()):
        return type(module).forward(module, x)
    return elementwise.rms_norm(x, module.weight.detach(), module.variance_epsilon)


def _gate(module: Any, x: Tensor) -> Any:
    if not (_plain(x) and operators_here()):
        return type(module).forward(module, x)
    gate, up = module.gate_proj(x), module.up_proj(x)
    whole = gate.is_contiguous() and up.is_contiguous() and _plain(gate) and _plain(up)
    inner = elementwise.gated(gate, up) if whole else module.act_fn(gate) * up
    del gate, up  # the model's own code holds neither while the last layer runs
    return module.down_proj(inner)


def _is_norm(module: nn.Module) -> bool:
    """Whether it is an RMSNorm with a weight and nothing else."""
    named = hasattr(module, "variance_epsilon") and [*module._parameters] == ["weight"]
    return named and _is_rms_norm(type(module).forward)


@cache
def _is_rms_norm(function: _Forward) -> bool:
    weight, epsilon = _sample(1, 24)[0], 1e-3
    x = _sample(3, 24) * torch.tensor([[3.0], [1.0], [0.02]])  # the last one shows the epsilon
    expected = x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight
    stand_in = SimpleNamespace(weight=weight, variance_epsilon=epsilon)
    return _does(function, stand_in, x, expected=expected)


def _is_gate(module: nn.Module) -> bool:
    """Whether it is down(silu(gate(x)) * up(x))."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if not all(callable(getattr(module, part, None)) for part in parts):
        return False
    x, gate, up = _sample(3, 8), _sample(3, 40) * 3, _sample(3, 40)
    stand_in = SimpleNamespace(
        gate_proj=lambda _: gate.clone(),
        up_proj=lambda _: up.clone(),
        down_proj=lambda inner: inner.clone(),
        act_fn=module.act_fn,
    )
    return _does(type(module).forward, stand_in, x, expected=functional.silu(gate) * up)


@cache
def _is_rotation(function: _Forward) -> bool:
    query, key = _sample(2, 4, 3, 8), _sample(2, 2, 3, 8)
    cosine, sine = _sample(1, 3, 8), _sample(1, 3, 8)  # halves differ, as those of angles may
    expected = []
    for x in (query, key):
        turned = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
        expected.append(x * cosine + turned * sine)
    found = _result(function, query, key, cosine, sine)
    return (
        isinstance(found, tuple)
        and len(found) == 2
        and all(_close(a, b) for a, b in zip(found, expected, strict=True))
    )


def _rotating(original: _Forward) -> _Forward:
    """A function for the place of transformers' apply_rotary_pos_emb."""

    def rotate(query: Any, key: Any, cosine: Any, sine: Any, *more: Any, **named: Any) -> Any:
        tensors = (query, key, cosine, sine)
        if more or named or not all(map(_turns, (query, key), (cosine,) * 2, (sine,) * 2)):
            return original(*tensors, *more, **named)
        if not operators_here():
            return original(*tensors)
        return elementwise.rotated(query, cosine, sine), elementwise.rotated(key, cosine, sine)

    return rotate


def _turns(x: Any, cosine: Any, sine: Any) -> bool:
    """Whether the operator takes x [batch, heads, tokens, width] and its angles."""
    if not all(isinstance(each, Tensor) and _plain(each) for each in (x, cosine, sine)):
        return False
    if x.dim() != 4 or cosine.dim() != 3 or cosine.shape != sine.shape:
        return False
    batch, _, tokens, width = x.shape
    return (
        cosine.shape[0] in (1, batch)
        and cosine.shape[1:] == (tokens, width)
        and width % 2 == 0
        and x.stride(3) == 1
        and x.stride(1) == width
        and cosine.is_contiguous()
        and sine.is_contiguous()
    )


def _files(model: nn.Module) -> list[dict[str, Any]]:
    """The names of every file of code with a rotation that the operator does."""
    found: dict[int, dict[str, Any]] = {}
    for kind in {type(module) for module in model.modules()}:
        names = getattr(inspect.unwrap(kind.forward), "__globals__", {})
        function = names.get(ROTATE)
        if id(names) not in found and callable(function) and _is_rotation(function):
            found[id(names)] = names
    return list(found.values())


def _plain(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and not torch.is_grad_enabled()
    )


def _sample(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator)


def _does(function: _Forward, *arguments: Any, expected: Tensor) -> bool:
    return _close(_result(function, *arguments), expected)


def _result(function: _Forward, *arguments: Any) -> Any:
    """What foreign code returns; None if it wants anything else."""
    try:
        with torch.no_grad():
            return function(*arguments)
    except Exception:  # whatever it raises, it is not the pattern
        return None


def _close(found: Any, expected: Tensor) -> bool:
    return (
        isinstance(found, Tensor)
        and found.shape == expected.shape
        and found.dtype == expected.dtype
        and torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    )
