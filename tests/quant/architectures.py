"""Tiny random decoders of every architecture that the tests run through."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 96
HIDDEN = 32
BLOCKS = 3

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "opt": (
        OPTConfig,
        {
            "hidden_size": HIDDEN,
            "ffn_dim": 64,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": HIDDEN,
            "dropout": 0.1,
        },
    ),
    # OPT-350M: projections around the blocks, layer norms after the sub-layers.
    "opt-350m": (
        OPTConfig,
        {
            "hidden_size": HIDDEN,
            "ffn_dim": 64,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
    ),
    "bloom": (BloomConfig, {"hidden_size": HIDDEN, "n_layer": BLOCKS, "n_head": 4}),
    "gpt2": (GPT2Config, {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64}),
    "gpt-neox": (
        GPTNeoXConfig,
        {
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "llama": (LlamaConfig, _LLAMA_LIKE),
    "mistral": (MistralConfig, {**_LLAMA_LIKE, "sliding_window": 8}),
    # One block with full and two with sliding attention: two masks in one model.
    "qwen2": (
        Qwen2Config,
        {**_LLAMA_LIKE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {**_LLAMA_LIKE, "head_dim": 8}),
    "gemma": (GemmaConfig, {**_LLAMA_LIKE, "head_dim": 8}),
    "gemma2": (Gemma2Config, {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 8}),
    "phi": (PhiConfig, {**_LLAMA_LIKE, "num_key_value_heads": 4}),
    "falcon": (
        FalconConfig,
        {"hidden_size": HIDDEN, "num_hidden_layers": BLOCKS, "num_attention_heads": 4},
    ),
    "falcon-alibi": (
        FalconConfig,
        {
            "hidden_size": HIDDEN,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": 4,
            "alibi": True,
            "parallel_attn": False,
            "multi_query": False,
        },
    ),
}

LINEARS_PER_BLOCK = {
    "opt": 6,
    "opt-350m": 6,
    "bloom": 4,
    "gpt2": 4,
    "gpt-neox": 4,
    "llama": 7,
    "mistral": 7,
    "qwen2": 7,
    "qwen3": 7,
    "gemma": 7,
    "gemma2": 7,
    "phi": 6,
    "falcon": 4,
    "falcon-alibi": 4,
}


def tiny_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model with weights large enough that every block matters."""
    key = f"{name} {seed} {sorted(changes.items())}"
    if key not in _made:
        model = _tiny_model(name, seed, changes)
        _made[key] = model, torch.get_rng_state()
    model, state = _made[key]
    torch.set_rng_state(state)  # what a test draws next does not depend on earlier tests
    return copy.deepcopy(model)  # half the time of making it


_made: dict[str, tuple[PreTrainedModel, torch.Tensor]] = {}


def _tiny_model(name: str, seed: int, changes: dict[str, Any]) -> PreTrainedModel:
    config_class, settings = CONFIGS[name]
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = config_class(**{"vocab_size": VOCABULARY, **special, **settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def uneven_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model whose inputs differ in size from column to column, as trained ones have them."""
    model = tiny_model(name)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and hasattr(module, "weight"):
            one = float("Gemma" in type(module).__name__)  # it multiplies by 1 + weight
            spread = torch.randn(module.weight.shape, generator=generator).exp()
            module.weight.data.copy_((module.weight.data + one) * spread - one)
    return model


def random_windows(count: int, length: int = 24, seed: int = 1) -> list[torch.Tensor]:
    """Windows int64 [length] of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for _ in range(count)]
