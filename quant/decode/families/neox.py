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
    same_of_all,
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
    layers = [_layer(each) for each in decoder.layers]
    attention = [each.attention for each in decoder.layers]
    width = same_of_all([each.head_size for each in attention], "the width of a head")
    parallel = [each.use_parallel_residual for each in decoder.layers]
    gelus = (Activation.GELU, Activation.GELU_TANH)
    activations = [activation_of(each.mlp.act, *gelus) for each in decoder.layers]
    return Description(
        layers=layers,
        norm=decoder.final_layer_norm,
        head=model.get_output_embeddings(),
        width=width,
        scale=same_of_all([each.scaling for each in attention], "scale"),
        activation=same_of_all(activations, "activation"),
        set_positions=rotations(decoder, width),
        parallel=same_of_all(parallel, "what their second part reads"),
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
    return LayerParts(layer.input_layernorm, layer.post_attention_layernorm, matrices)
