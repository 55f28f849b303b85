"""What of a model a fused step (cuda_ext.step) takes: a decoder of the Llama family.

Models are recognised by their modules, not by their names. Whatever a module does besides (a
multiplier of residuals, another order) shows in the logits: quant.decode.decoder compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cuda_ext.step import WIDTH_STEP, Place, Step
from quant.linear import QuantLinear

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {
    "q_proj": Place.QUERY,
    "k_proj": Place.KEY,
    "v_proj": Place.VALUE,
    "o_proj": Place.OUTPUT,
}
FEED = {"gate_proj": Place.GATE, "up_proj": Place.UP, "down_proj": Place.DOWN}
ACTIVATION = "act_fn"


class Unsupported(Exception):
    """Why a model cannot be decoded in some mode, one clause."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder: heads, the width of one, and the width between gate and down."""

    layers: int
    heads: int
    kv_heads: int
    width: int
    feed: int


def require_llama(model: Any) -> Shape:
    """The sizes of a model that a fused step can take; Unsupported saying what it has instead."""
    if model.dtype != torch.float32:
        raise Unsupported(f"its activations are {model.dtype}, and the step's float32")
    decoder = model.base_model
    for name in ("layers", "norm", "rotary_emb"):
        if not hasattr(decoder, name):
            raise Unsupported(f"{type(decoder).__name__} has no {name}")
    if not len(decoder.layers):
        raise Unsupported("it has no layers")
    for layer in decoder.layers:
        _require_children(layer, LAYER)
        _require_children(layer.self_attn, set(ATTENTION))
        _require_children(layer.mlp, {*FEED, ACTIVATION})
        if not _is_silu(layer.mlp.act_fn):
            raise Unsupported(f"its activation is {type(layer.mlp.act_fn).__name__}, not SiLU")
    for norm in _norms(decoder):
        if not hasattr(norm, "variance_epsilon") or [*norm.state_dict()] != ["weight"]:
            raise Unsupported(f"its norm is {type(norm).__name__}, not an RMSNorm")
    if len({(norm.variance_epsilon) for norm in _norms(decoder)}) > 1:
        raise Unsupported("its norms have different epsilons")
    for linear in _matrices(model):
        _require_matrix(linear)
    return _shape(model)


def open_step(
    model: Any,
    shape: Shape,
    embedding: Tensor,
    cache: Sequence[tuple[Tensor, Tensor]],
    most_tokens: int,
) -> tuple[Step, int]:
    """A step over the model's own tensors, and the keys and values of every layer; and how many
    bytes fewer than the model holds it reads a token, because its head is read as bfloat16.

    embedding [vocabulary, hidden] has the rows of the tokens that are passed; cache holds
    [1, kv_heads, positions, width] of keys and of values, layer by layer.
    """
    decoder, attention = model.base_model, model.base_model.layers[0].self_attn
    cosine, sine = _rotations(decoder, cache[0][0].shape[2])
    step = Step(
        embedding,
        decoder.norm.weight.detach(),
        cosine,
        sine,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        feed=shape.feed,
        epsilon=decoder.norm.variance_epsilon,
        scale=attention.scaling,
        most_tokens=most_tokens,
    )
    for index, (layer, (keys, values)) in enumerate(zip(decoder.layers, cache, strict=True)):
        norm, feed_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        step.add_layer(norm.detach(), feed_norm.detach(), keys, values)
        for name, place in ATTENTION.items():
            _set(step, index, place, getattr(layer.self_attn, name))
        for name, place in FEED.items():
            _set(step, index, place, getattr(layer.mlp, name))
    head = model.get_output_embeddings()
    if isinstance(head, QuantLinear):
        _set(step, 0, Place.HEAD, head)
        return step, 0
    weight = head.weight.detach()
    held = halved(weight)
    step.set_dense(0, Place.HEAD, held, _detached(head.bias))
    return step, weight.nbytes - held.nbytes


def all_packed(model: Any) -> bool:
    """Whether every matrix inside the layers is packed."""
    return all(isinstance(linear, QuantLinear) for linear in _matrices(model)[:-1])


def halved(weight: Tensor) -> Tensor:
    """The same numbers as bfloat16 where it holds them all exactly, as it does for a checkpoint
    that was stored so; else the weight itself.
    """
    half = weight.to(torch.bfloat16)
    parts = zip(half.split(4096), weight.split(4096), strict=True)
    same = all(torch.equal(rounded.float(), exact) for rounded, exact in parts)
    return half if same else weight


def _set(step: Step, layer: int, place: Place, linear: Any) -> None:
    if not isinstance(linear, QuantLinear):
        step.set_dense(layer, place, linear.weight.detach(), _detached(linear.bias))
        return
    step.set_packed(
        layer,
        place,
        linear.kernel_buffers(),
        bits=linear.scheme.bits,
        in_features=linear.in_features,
        out_features=linear.out_features,
        group_size=linear.scheme.group_size,
        bias=linear.bias,
    )


def _is_silu(function: Any) -> bool:
    """By what it does: libraries wrap it in classes of their own."""
    x = torch.linspace(-8, 8, 33)
    return torch.allclose(function(x), functional.silu(x), rtol=1e-5, atol=1e-6)


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _rotations(decoder: Any, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [positions, width], as the model's own module makes them."""
    places = torch.arange(positions)[None]
    hidden = decoder.norm.weight.new_empty((1, 1, 1))
    cosine, sine = (part[0].float().contiguous() for part in decoder.rotary_emb(hidden, places))
    return cosine, sine


def _shape(model: Any) -> Shape:
    decoder = model.base_model
    found = set()
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        width = attention.head_dim
        ends = (attention.q_proj, attention.k_proj, mlp.gate_proj)
        query, key, feed = (linear.out_features for linear in ends)
        found.add((query // width, key // width, width, feed, attention.scaling))
    if len(found) > 1:
        raise Unsupported("its layers differ in size")
    heads, kv_heads, width, feed, _ = found.pop()
    if width % WIDTH_STEP:
        raise Unsupported(f"a head is {width} wide, no multiple of {WIDTH_STEP}")
    cosine, _ = _rotations(decoder, 1)
    if cosine.shape[1] != width:
        raise Unsupported(f"it rotates {cosine.shape[1]} of the {width} numbers of a head")
    return Shape(len(decoder.layers), heads, kv_heads, width, feed)


def _norms(decoder: Any) -> list[Any]:
    layers = [(each.input_layernorm, each.post_attention_layernorm) for each in decoder.layers]
    return [decoder.norm, *(norm for pair in layers for norm in pair)]


def _matrices(model: Any) -> list[Any]:
    inner = [
        getattr(part, name)
        for layer in model.base_model.layers
        for part, names in ((layer.self_attn, ATTENTION), (layer.mlp, FEED))
        for name in names
    ]
    return [*inner, model.get_output_embeddings()]


def _require_matrix(linear: Any) -> None:
    if isinstance(linear, QuantLinear):
        if not linear.tiled:
            raise Unsupported(f"a layer is multiplied by {linear.way}")
        if linear.input_operator is not None:
            raise Unsupported("a layer has an operator on its input")
    elif not isinstance(linear, nn.Linear):
        raise Unsupported(f"a layer is {type(linear).__name__}")


def _require_children(module: Any, names: set[str]) -> None:
    found = {name for name, _ in module.named_children()}
    if found != names:
        other = ", ".join(sorted(found ^ names))
        raise Unsupported(f"{type(module).__name__} differs from Llama's in {other}")
