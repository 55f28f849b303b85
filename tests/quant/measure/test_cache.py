"""The cache of a sequence, held against what models keep when they read many tokens."""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from quant.measure.cache import CacheShape, cache_shape

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
TOKEN = torch.tensor([[5]])


def llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=3)).to(dtype).eval()


def gemma() -> Gemma3ForCausalLM:
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**SIZES, num_hidden_layers=3, sliding_window=8, layer_types=layers)
    return Gemma3ForCausalLM(config).eval()


def hybrid() -> Qwen3NextForCausalLM:
    config = Qwen3NextConfig(
        **SIZES, num_hidden_layers=4, moe_intermediate_size=16, num_experts=2,
        shared_expert_intermediate_size=16, num_experts_per_tok=1, linear_num_value_heads=2,
        linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    return Qwen3NextForCausalLM(config).eval()


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_keys_and_values_of_all_layers(dtype: torch.dtype, width: int) -> None:
    found = cache_shape(llama(dtype), TOKEN)
    assert found == CacheShape({None: 3 * 2 * 2 * 16 * width}, 0)
    assert found.at(100) == 100 * 192 * width


def test_a_window_keeps_no_more_than_its_positions() -> None:
    found = cache_shape(gemma(), TOKEN)
    assert found == CacheShape({8: 2 * 2 * 2 * 16 * 4, None: 2 * 2 * 16 * 4}, 0)
    assert found.at(5) == 5 * 768
    assert found.at(1000) == 8 * 512 + 1000 * 256


def test_a_state_does_not_grow() -> None:
    """The model's own tensors after a long sequence, counted apart from `cache_shape`."""
    model = hybrid()
    found = cache_shape(model, TOKEN)
    assert found is not None
    assert found.per_position == {None: 2 * 2 * 16 * 4}  # the fourth layer alone has attention
    with torch.no_grad():
        cache = model(input_ids=TOKEN.expand(1, 50), use_cache=True).past_key_values
    held = sum(
        part.nbytes
        for layer in cache.layers
        for value in vars(layer).values()
        for part in (value.values() if isinstance(value, dict) else [value])
        if isinstance(part, torch.Tensor)
    )
    assert found.at(50) == held
    assert found.state > 0


def test_a_model_without_such_a_cache_has_no_shape() -> None:
    config = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)
    assert cache_shape(MambaForCausalLM(config).eval(), TOKEN) is None
