"""Phi 1 to 4 in GGUF: `phi2` has biases and one norm a block, `phi3` joined projections."""

from __future__ import annotations

from quant.checkpoint.gguf.architecture import Architecture, Config, Key, bias, weight
from quant.checkpoint.gguf.decoder import EMBEDDING, FINAL_NORM, HEAD, NORMS, RMS
from quant.checkpoint.gguf.file import GgufFile

_WINDOW = "attention.sliding_window"
_LINEAR = (
    ("attn_q", "self_attn.q_proj", "queries", "width"),
    ("attn_k", "self_attn.k_proj", "keys", "width"),
    ("attn_v", "self_attn.v_proj", "keys", "width"),
    ("attn_output", "self_attn.dense", "width", "queries"),
    ("ffn_up", "mlp.fc1", "inner", "width"),
    ("ffn_down", "mlp.fc2", "width", "inner"),
)


def _phi3(file: GgufFile, config: Config) -> Config:
    """The window is that of the model's own configuration; llama.cpp has it switched off.

    transformers takes the original length from here, whatever the scaling says.
    """
    there, length = file.metadata.get(f"phi3.{_WINDOW}"), "original_max_position_embeddings"
    scaling = config.get("rope_scaling", {})
    return {
        "sliding_window": file.number(f"phi3.{_WINDOW}") if there else None,
        length: scaling.get(length, config["max_position_embeddings"]),
    }


def _window(config: Config) -> Config:
    window = config.get("sliding_window")
    return {} if window is None else {_WINDOW: window}


ARCHITECTURES = (
    Architecture(
        name="phi2",
        cls="PhiForCausalLM",
        model_type="phi",
        fixed={"hidden_act": "gelu_new", "qk_layernorm": False},
        keys=(Key("attention.layer_norm_epsilon", "layer_norm_eps", whole=False),),
        whole=(
            EMBEDDING,
            weight("output_norm", "model.final_layernorm", "width"),
            bias("output_norm", "model.final_layernorm", "width"),
        ),
        block=(
            weight("attn_norm", "input_layernorm", "width"),
            bias("attn_norm", "input_layernorm", "width"),
            *(weight(stored, placed, *shape) for stored, placed, *shape in _LINEAR),
            *(bias(stored, placed, size) for stored, placed, size, _ in _LINEAR),
        ),
        head=(*HEAD, bias("output", "lm_head", "vocabulary")),
        partial=True,
        written=("phi",),
    ),
    Architecture(
        name="phi3",
        cls="Phi3ForCausalLM",
        model_type="phi3",
        fixed={"hidden_act": "silu"},
        keys=(RMS,),
        whole=(EMBEDDING, FINAL_NORM),
        block=(
            *NORMS,
            weight("attn_qkv", "self_attn.qkv_proj", "all three", "width"),
            weight("attn_output", "self_attn.o_proj", "width", "queries"),
            weight("ffn_up", "mlp.gate_up_proj", "inner twice", "width"),
            weight("ffn_down", "mlp.down_proj", "width", "inner"),
        ),
        head=HEAD,
        partial=True,
        more=_phi3,
        also=(_WINDOW,),
        written=("phi3",),
        unread=_window,
    ),
)
