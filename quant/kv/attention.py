"""Run a model with a cache of a scheme in place of its own.

Attention of transformers goes through an interface, a function of queries, keys and values; here it
is a cache's `attend`. All tokens of a window are computed at once, as in any forward pass: a layer
of a causal model reads nothing but the layers before it at the same and earlier tokens, so what a
query sees depends on earlier tokens of its own layer alone. Results are those of decoding token by
token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.bloom.modeling_bloom import BloomAttention

from quant.kv.base import CHECKED, STORED_BITS, Cache, Heads, KvCacheError, Shape
from quant.kv.stepped import Stepped

NAME = "bitsweep_kv_cache"
# What the interface may hand over besides; all else could change attention.
KNOWN = frozenset({"dropout", "is_causal", "position_ids", "cache_position", "use_cache",
                   "output_attentions", "output_hidden_states", "return_dict", "layer_idx",
                   "past_key_values", "position_embeddings", "head_mask"})  # fmt: skip
# Largest difference of logits between a full cache here and the model's own attention, in standard
# deviations of the logits: rounding explains less, a part of attention that is missing more.
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-3}
AGREEMENT_16_BITS = 0.1

Attend = Callable[[Heads], Tensor]
_active: list[Attend] = []  # the cache in use, innermost last


def full_cache() -> Cache:
    """The model's own cache: every number in the model's dtype."""
    return Stepped(Shape(1, 1), (), (), [], exact=True)


@contextmanager
def using(model: Any, cache: Cache) -> Iterator[None]:
    """Inside, forward passes of the model over one window read keys and values from `cache`.

    Raises KvCacheError at its end if attention of some layer did not: nothing falls back to the
    model's own.
    """
    seen: set[int] = set()

    def attend(heads: Heads) -> Tensor:
        seen.add(heads.layer)
        return cache.attend(heads)

    own = model.config._attn_implementation
    with ExitStack() as stack:
        blooms = [each for each in model.modules() if isinstance(each, BloomAttention)]
        for each in blooms:
            each.__dict__["forward"] = MethodType(_bloom, each)
            stack.callback(each.__dict__.pop, "forward")
        if not blooms:
            model.set_attn_implementation(NAME)
            stack.callback(model.set_attn_implementation, own)
        _active.append(attend)
        stack.callback(_active.pop)
        yield
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if len(seen) != layers:
        raise KvCacheError(
            f"{type(model).__name__}: attention of {layers - len(seen)} of its {layers} layers "
            "does not go through transformers' attention interface, so its cache cannot be "
            "replaced: leave suite=kv_cache out for this model."
        )


@dataclass(frozen=True)
class Seen:
    """What a model caches, and how well its attention is simulated.

    shape       of the cache of one head, the same in all layers.
    numbers     of a token in all layers and heads.
    difference  largest difference between logits with a full cache here and the model's own, in
                standard deviations of the logits.
    """

    shape: Shape
    numbers: int
    difference: float


@dataclass(frozen=True)
class _Noting:
    """A full cache that notes the shape and the number of the heads of every layer."""

    words: list[str] = field(default_factory=list)
    noted: list[tuple[Shape, int]] = field(default_factory=list)

    def bits(self, tokens: int) -> float:  # noqa: ARG002
        return STORED_BITS

    def attend(self, heads: Heads) -> Tensor:
        shape = Shape(heads.key.shape[-1], heads.value.shape[-1], heads.bias is not None)
        self.noted.append((shape, len(heads.key)))
        return full_cache().attend(heads)


@torch.inference_mode()
def look(model: Any, ids: Tensor) -> Seen:
    """Find the shape of the model's cache, and compare a full cache with its own attention.

    ids  [1, tokens]; the first CHECKED are read. KvCacheError if logits differ by more than
    rounding: then attention has a part that caches here leave out.
    """
    ids = ids[:, :CHECKED]
    expected = model(input_ids=ids, use_cache=False).logits.double()
    noting = _Noting()
    with using(model, noting):
        found = model(input_ids=ids, use_cache=False).logits.double()
    worst = float(((found - expected).abs().max() / expected.std()).nan_to_num(torch.inf))
    if worst > AGREEMENT.get(model.dtype, AGREEMENT_16_BITS):
        raise KvCacheError(
            f"{type(model).__name__}: with a full cache its logits are {worst:.2g} standard "
            "deviations from its own, so its attention does something that caches here do not: "
            "leave suite=kv_cache out for this model."
        )
    shapes = {shape for shape, _ in noting.noted}
    if len(shapes) != 1:
        raise KvCacheError(
            f"{type(model).__name__}: its layers cache keys and values of several widths, for "
            "which budgets are not solved: leave suite=kv_cache out for this model."
        )
    numbers = sum(shape.numbers * heads for shape, heads in noting.noted)
    return Seen(shapes.pop(), numbers, worst)


def _interface(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, heads, tokens, channels], key and value."""
    given = sorted(name for name, each in more.items() if each is not None and name not in KNOWN)
    if given:
        raise KvCacheError(
            f"{type(module).__name__}: attention with {given[0]}={more[given[0]]!r:.40} cannot be "
            "simulated: leave suite=kv_cache out for this model."
        )
    if attention_mask is not None:
        raise KvCacheError(
            f"{type(module).__name__}: attention with a mask besides the causal one cannot be "
            "simulated: leave suite=kv_cache out for this model."
        )
    factor = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    found = _attend(query, key, value, factor, None, module.layer_idx)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _interface)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor | None, layer: int
) -> Tensor:
    """[1, heads, tokens, channels]; bias [heads, 1, tokens]."""
    if len(query) != 1 or query.shape[2] != key.shape[2]:
        raise KvCacheError(
            f"layer {layer}: {len(query)} windows of {query.shape[2]} queries and {key.shape[2]} "
            "keys: caches are simulated on one whole window at a time."
        )
    group = (key.shape[1], query.shape[1] // key.shape[1])
    wide = query.dtype in (torch.float32, torch.float64)
    working = query.dtype if wide else torch.float32
    dtype = torch.float16 if wide else query.dtype
    heads = Heads(
        query=query[0].to(working).unflatten(0, group),
        key=key[0].to(working),
        value=value[0].to(working),
        scaling=scaling,
        bias=None if bias is None else bias.to(working).unflatten(0, group),
        layer=layer,
        stored=dtype,
    )
    return _active[-1](heads).flatten(0, 1)[None].to(query.dtype)


def _bloom(
    module: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor,  # noqa: ARG001 - causal
    **_: Any,
) -> tuple[Tensor, None]:
    """BLOOM's attention, whose logits have a bias that grows with the position of the key."""
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    found = _attend(query, key, value, module.inv_norm_factor, alibi, module.layer_idx)
    merged = found.transpose(1, 2).flatten(2)
    return module.dense(merged) + residual, None
