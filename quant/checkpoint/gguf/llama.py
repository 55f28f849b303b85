"""Llama in GGUF, and Mistral, SmolLM and others that llama.cpp takes for Llamas."""

from __future__ import annotations

from quant.checkpoint.gguf.architecture import Architecture, Config, Rest, Row, bias
from quant.checkpoint.gguf.decoder import (
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    MLP,
    NORMS,
    RMS,
    keys_in_halves,
    keys_in_pairs,
    queries_in_halves,
    queries_in_pairs,
)
from quant.checkpoint.gguf.file import GgufFile

_ORDERS = {
    "attn_q": (queries_in_halves, queries_in_pairs),
    "attn_k": (keys_in_halves, keys_in_pairs),
}
_BIASES = (
    bias("attn_q", "self_attn.q_proj", "queries"),
    bias("attn_k", "self_attn.k_proj", "keys"),
    bias("attn_v", "self_attn.v_proj", "keys"),
    bias("attn_output", "self_attn.o_proj", "width"),
)
_MLP_BIASES = (
    bias("ffn_gate", "mlp.gate_proj", "inner"),
    bias("ffn_up", "mlp.up_proj", "inner"),
    bias("ffn_down", "mlp.down_proj", "width"),
)
_WINDOW = "attention.sliding_window"
_UNROTATED = 4  # a period of blocks


def _in_halves(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(row.stored, row.placed, row.shape, *_ORDERS.get(row.stored.split(".")[0], ()))
        for row in rows
    )


def _mistral(file: GgufFile, _config: Config) -> Config:
    """A Llama whose attention sees a window is Mistral in transformers, with the same tensors."""
    if not file.metadata.get(f"llama.{_WINDOW}"):
        return {}
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": file.number(f"llama.{_WINDOW}"),
    }


def _window(config: Config) -> Config:
    window = config.get("sliding_window")
    return {} if window is None else {_WINDOW: window}


def _smollm3(_file: GgufFile, config: Config) -> Config:
    """Every fourth block does not rotate; no key says so."""
    blocks = range(config["num_hidden_layers"])
    return {"no_rope_layers": [int((block + 1) % _UNROTATED != 0) for block in blocks]}


_BLOCK = (*NORMS, *_in_halves(ATTENTION), *MLP)
_RESTS = (Rest("attention_bias", _in_halves(_BIASES)), Rest("mlp_bias", _MLP_BIASES))

ARCHITECTURES = (
    Architecture(
        name="llama",
        cls="LlamaForCausalLM",
        model_type="llama",
        fixed={"hidden_act": "silu"},
        keys=(RMS,),
        whole=(EMBEDDING, FINAL_NORM),
        block=_BLOCK,
        head=HEAD,
        rests=_RESTS,
        more=_mistral,
        also=(_WINDOW,),
        written=("llama", "mistral"),
        unread=_window,
    ),
    Architecture(
        name="smollm3",
        cls="SmolLM3ForCausalLM",
        model_type="smollm3",
        fixed={"hidden_act": "silu", "use_sliding_window": False},
        keys=(RMS,),
        whole=(EMBEDDING, FINAL_NORM),
        block=_BLOCK,
        head=HEAD,
        rests=_RESTS,
        more=_smollm3,
        written=("smollm3",),
    ),
)
