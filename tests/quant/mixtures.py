"""Tiny random mixtures of experts of every layout that the tests run through."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    JambaConfig,
    MixtralConfig,
    PhimoeConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

VOCABULARY, HIDDEN, EXPERTS, BLOCKS = 96, 32, 4, 2
_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 24,
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip

MIXTURES: dict[str, tuple[type, dict[str, Any]]] = {
    "mixtral": (MixtralConfig, {"num_local_experts": EXPERTS}),
    "qwen3-moe": (
        Qwen3MoeConfig,
        {"num_experts": EXPERTS, "moe_intermediate_size": 48, "head_dim": 8},
    ),
    "gpt-oss": (
        GptOssConfig,
        {"num_local_experts": EXPERTS, "head_dim": 8, "attn_implementation": "eager",
         "sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "qwen3-next": (
        Qwen3NextConfig,
        {"num_experts": EXPERTS, "moe_intermediate_size": 24, "head_dim": 8,
         "shared_expert_intermediate_size": 24, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "layer_types": ["linear_attention", "full_attention"]},
    ),
    "deepseek-v2": (DeepseekV2Config, {**_LATENT, "topk_method": "greedy"}),
    "deepseek-v3": (DeepseekV3Config, _LATENT),
    "jamba": (
        JambaConfig,
        {"num_experts": EXPERTS, "expert_layer_offset": 0, "expert_layer_period": 1,
         "attn_layer_offset": 1, "attn_layer_period": 2, "mamba_d_state": 4, "mamba_dt_rank": 4,
         "use_mamba_kernels": False},
    ),
    "phimoe": (PhimoeConfig, {"num_local_experts": EXPERTS}),
}  # fmt: skip


def tiny_mixture(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model with weights large enough that every expert matters."""
    config_class, settings = MIXTURES[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_class(**{**_SHARED, **settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.2 if parameter.dim() > 1 else 0.1
            noise = torch.randn_like(parameter) * spread
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.eval()


def fused_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that transformers holds experts in, by name."""
    return {n: m for n, m in model.named_modules() if hasattr(m, "_is_expert_parallel")}
