"""Qwen 2, 2.5 and 3 in GGUF."""

from __future__ import annotations

from quant.checkpoint.gguf.architecture import Architecture, Rest, bias
from quant.checkpoint.gguf.decoder import (
    ATTENTION,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    HEAD_NORMS,
    MLP,
    NORMS,
    RMS,
)

_BIASES = (
    bias("attn_q", "self_attn.q_proj", "queries"),
    bias("attn_k", "self_attn.k_proj", "keys"),
    bias("attn_v", "self_attn.v_proj", "keys"),
)

ARCHITECTURES = (
    Architecture(
        name="qwen2",
        cls="Qwen2ForCausalLM",
        model_type="qwen2",
        fixed={"hidden_act": "silu", "use_sliding_window": False},
        keys=(RMS,),
        whole=(EMBEDDING, FINAL_NORM),
        block=(*NORMS, *ATTENTION, *_BIASES, *MLP),
        head=HEAD,
        written=("qwen2",),
    ),
    Architecture(
        name="qwen3",
        cls="Qwen3ForCausalLM",
        model_type="qwen3",
        fixed={"hidden_act": "silu", "use_sliding_window": False},
        keys=(RMS,),
        whole=(EMBEDDING, FINAL_NORM),
        block=(*NORMS, *ATTENTION, *HEAD_NORMS, *MLP),
        head=HEAD,
        rests=(
            Rest(
                "attention_bias",
                (*_BIASES, bias("attn_output", "self_attn.o_proj", "width")),
            ),
        ),
        written=("qwen3",),
    ),
)
