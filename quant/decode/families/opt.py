"""OPT's decoders: LayerNorm before each part of a layer, learned positions, ReLU (Galactica:
GELU), biases.
"""

from __future__ import annotations

from typing import Any

from torch.nn import functional

from cuda_ext.step import Activation, Place, Step
from quant.decode.description import (
    Description,
    LayerParts,
    Unsupported,
    activation_of,
    require_children,
)

NAME = "OPT"
LAYER = {"self_attn", "activation_fn", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm"}
ATTENTION = {
    "q_proj": Place.QUERY,
    "k_proj": Place.KEY,
    "v_proj": Place.VALUE,
    "out_proj": Place.OUTPUT,
}


def describe(model: Any) -> Description | None:
    """None for another kind of decoder; Unsupported saying what one of this kind differs in."""
    decoder: Any = getattr(model.base_model, "decoder", None)
    if not all(hasattr(decoder, name) for name in ("layers", "embed_positions", "project_in")):
        return None
    if decoder.project_in is not None or decoder.project_out is not None:
        raise Unsupported("its embeddings have another width than its layers")
    if not all(layer.do_layer_norm_before for layer in decoder.layers):
        raise Unsupported("its norms come behind the parts of a layer")
    if decoder.final_layer_norm is None:
        raise Unsupported("it has no norm before the head")
    table = decoder.embed_positions

    def learned(step: Step, positions: int) -> None:
        rows = table.weight.detach()[table.offset :]
        if len(rows) < positions:  # a cache is rounded up to whole vectors
            rows = functional.pad(rows, (0, 0, 0, positions - len(rows)))
        step.set_learned_positions(rows[:positions])

    return Description(
        layers=[_layer(each) for each in decoder.layers],
        norm=decoder.final_layer_norm,
        head=model.get_output_embeddings(),
        set_positions=learned,
        most_positions=table.num_embeddings - table.offset,
    )


def _layer(layer: Any) -> LayerParts:
    require_children(layer, LAYER, NAME)
    require_children(layer.self_attn, set(ATTENTION), NAME)
    matrices = {place: getattr(layer.self_attn, name) for name, place in ATTENTION.items()}
    matrices |= {Place.UP: layer.fc1, Place.DOWN: layer.fc2}
    return LayerParts(
        norm=layer.self_attn_layer_norm,
        feed_norm=layer.final_layer_norm,
        matrices=matrices,
        width=layer.self_attn.head_dim,
        scale=layer.self_attn.scaling,
        activation=activation_of(layer.activation_fn, Activation.RELU, Activation.GELU),
    )
