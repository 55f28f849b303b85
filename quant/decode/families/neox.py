"""GPT-NeoX's decoders (Pythia): LayerNorm, both parts of a layer side by side, rotations of a part
of each head, one matrix for query, key and value, GELU.
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

NAME = "GPT-NeoX"
LAYER = {
    "input_layernorm",
    "post_attention_layernorm",
    "post_attention_dropout",
    "post_mlp_dropout",
    "attention",
    "mlp",
}
ATTENTION = {"query_key_value", "dense"}
FEED = {"dense_h_to_4h", "dense_4h_to_h", "act"}


def describe(model: Any) -> Description | None:
    """None for another kind of decoder; Unsupported saying what one of this kind differs in."""
    decoder = model.base_model
    if not all(hasattr(decoder, name) for name in ("embed_in", "layers", "final_layer_norm")):
        return None
    return Description(
        layers=[_layer(each) for each in decoder.layers],
        norm=decoder.final_layer_norm,
        head=model.get_output_embeddings(),
        set_positions=rotations(decoder),
    )


def _layer(layer: Any) -> LayerParts:
    require_children(layer, LAYER, NAME)
    attention, mlp = layer.attention, layer.mlp
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
        width=attention.head_size,
        scale=attention.scaling,
        activation=activation_of(mlp.act, Activation.GELU, Activation.GELU_TANH),
        parallel=layer.use_parallel_residual,
    )
