"""BLOOM's decoders: LayerNorm before each part of a layer and of the embeddings, ALiBi, one matrix
for query, key and value, GELU.
"""

from __future__ import annotations

from typing import Any

import torch

from cuda_ext.step import Activation, Place, Step
from quant.decode.description import (
    Description,
    LayerParts,
    Unsupported,
    activation_of,
    require_children,
    same_of_all,
)

NAME = "BLOOM"
LAYER = {"input_layernorm", "self_attention", "post_attention_layernorm", "mlp"}
ATTENTION = {"query_key_value", "dense", "attention_dropout"}
FEED = {"dense_h_to_4h", "gelu_impl", "dense_4h_to_h"}


def describe(model: Any) -> Description | None:
    """None for another kind of decoder; Unsupported saying what one of this kind differs in."""
    decoder = model.base_model
    own = ("h", "ln_f", "word_embeddings_layernorm", "build_alibi_tensor")
    if not all(hasattr(decoder, name) for name in own):
        return None
    layers = [_layer(each) for each in decoder.h]
    if any(layer.apply_residual_connection_post_layernorm for layer in decoder.h):
        raise Unsupported("its layers add to their normed inputs")
    heads = same_of_all([each.self_attention.num_heads for each in decoder.h], "heads")

    def slopes(step: Step, _positions: int) -> None:
        places = torch.ones((1, 2), dtype=torch.int64)  # the second has the slope times 1
        step.set_slopes(decoder.build_alibi_tensor(places, heads, torch.float32)[:, 0, 1].clone())

    return Description(
        layers=layers,
        norm=decoder.ln_f,
        head=model.get_output_embeddings(),
        set_positions=slopes,
        embedding_norm=decoder.word_embeddings_layernorm,
    )


def _layer(layer: Any) -> LayerParts:
    require_children(layer, LAYER, NAME)
    attention, mlp = layer.self_attention, layer.mlp
    require_children(attention, ATTENTION, NAME)
    require_children(mlp, FEED, NAME)
    matrices = {
        Place.QUERY_KEY_VALUE: attention.query_key_value,
        Place.OUTPUT: attention.dense,
        Place.UP: mlp.dense_h_to_4h,
        Place.DOWN: mlp.dense_4h_to_h,
    }
    return LayerParts(
        norm=layer.input_layernorm,
        feed_norm=layer.post_attention_layernorm,
        matrices=matrices,
        width=attention.head_dim,
        scale=attention.inv_norm_factor,
        activation=activation_of(mlp.gelu_impl, Activation.GELU_TANH),
    )
