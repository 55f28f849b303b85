"""Decoders of Llama's kind: RMSNorm, rotary positions, grouped attention, SwiGLU; Qwen3's norms of
queries and keys.
"""

from __future__ import annotations

from typing import Any

from cuda_ext.step import Activation, Place
from quant.decode.description import (
    Description,
    LayerParts,
    activation_of,
    require_children,
    rotations,
)

NAME = "Llama"
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {
    "q_proj": Place.QUERY,
    "k_proj": Place.KEY,
    "v_proj": Place.VALUE,
    "o_proj": Place.OUTPUT,
}
HEAD_NORMS = {"q_norm", "k_norm"}
FEED = {"gate_proj": Place.GATE, "up_proj": Place.UP, "down_proj": Place.DOWN}


def describe(model: Any) -> Description | None:
    """None for another kind of decoder; Unsupported saying what one of this kind differs in."""
    decoder = model.base_model
    if not all(hasattr(decoder, name) for name in ("layers", "norm", "rotary_emb")):
        return None
    return Description(
        layers=[_layer(each) for each in decoder.layers],
        norm=decoder.norm,
        head=model.get_output_embeddings(),
        set_positions=rotations(decoder),
    )


def _layer(layer: Any) -> LayerParts:
    require_children(layer, LAYER, NAME)
    attention, mlp = layer.self_attn, layer.mlp
    normed = any(hasattr(attention, name) for name in HEAD_NORMS)
    require_children(attention, {*ATTENTION, *(HEAD_NORMS if normed else ())}, NAME)
    require_children(mlp, {*FEED, "act_fn"}, NAME)
    matrices = {place: getattr(attention, name) for name, place in ATTENTION.items()}
    matrices |= {place: getattr(mlp, name) for name, place in FEED.items()}
    return LayerParts(
        norm=layer.input_layernorm,
        feed_norm=layer.post_attention_layernorm,
        matrices=matrices,
        width=attention.head_dim,
        scale=attention.scaling,
        activation=activation_of(mlp.act_fn, Activation.SILU_GATE),
        query_norm=attention.q_norm if normed else None,
        key_norm=attention.k_norm if normed else None,
    )
