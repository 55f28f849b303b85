"""Phi's decoders (1, 1.5 and 2): both parts of a layer side by side behind one LayerNorm, rotations
of a part of each head, GELU by its tanh, biases.
"""

from __future__ import annotations

from typing import Any

from cuda_ext.step import Activation, Place
from quant.decode.description import (
    Description,
    LayerParts,
    Unsupported,
    activation_of,
    require_children,
    rotations,
)

NAME = "Phi"
LAYER = {"self_attn", "mlp", "input_layernorm", "resid_dropout"}
ATTENTION = {
    "q_proj": Place.QUERY,
    "k_proj": Place.KEY,
    "v_proj": Place.VALUE,
    "dense": Place.OUTPUT,
}


def describe(model: Any) -> Description | None:
    """None for another kind of decoder; Unsupported saying what one of this kind differs in."""
    decoder = model.base_model
    if not all(hasattr(decoder, name) for name in ("layers", "final_layernorm", "rotary_emb")):
        return None
    return Description(
        layers=[_layer(each) for each in decoder.layers],
        norm=decoder.final_layernorm,
        head=model.get_output_embeddings(),
        set_positions=rotations(decoder),
    )


def _layer(layer: Any) -> LayerParts:
    require_children(layer, LAYER, NAME)
    attention, mlp = layer.self_attn, layer.mlp
    if attention.qk_layernorm:
        raise Unsupported("it has LayerNorms of queries and keys")
    require_children(attention, set(ATTENTION), NAME)
    require_children(mlp, {"activation_fn", "fc1", "fc2"}, NAME)
    matrices = {place: getattr(attention, name) for name, place in ATTENTION.items()}
    matrices |= {Place.UP: mlp.fc1, Place.DOWN: mlp.fc2}
    return LayerParts(
        norm=layer.input_layernorm,
        feed_norm=layer.input_layernorm,
        matrices=matrices,
        width=attention.head_dim,
        scale=attention.scaling,
        activation=activation_of(mlp.activation_fn, Activation.GELU, Activation.GELU_TANH),
        parallel=True,
    )
