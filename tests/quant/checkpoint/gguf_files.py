"""Small GGUF files, written through the package `gguf` as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ["the", "Ġthe", "Ġcat", "Ġsat", "12", "Ġ1", "ĠĠ"]
SPECIAL = ["<|end|>", "<|start|>"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def vocabulary() -> tuple[list[str], list[str]]:
    """Special tokens, all bytes and some words; the merges that make the words."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merges = ["t h", "th e", "Ġ the", "Ġ c", "Ġc a", "Ġca t", "Ġ s", "Ġs a", "Ġsa t", "1 2", "Ġ 1",
              "Ġ Ġ"]  # fmt: skip
    made = [merge.replace(" ", "") for merge in merges]
    return [*SPECIAL, *sorted(bytes_to_unicode().values()), *made], merges


def llama(tied: bool = True) -> LlamaForCausalLM:
    """A random Llama of two blocks with grouped queries."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()[0]), hidden_size=64, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 2 else 1))
    return model


def stored_name(name: str) -> str:
    """The name of a tensor in GGUF."""
    name = name.removesuffix(".weight")
    if name.startswith("model.layers."):
        _, _, index, rest = name.split(".", 3)
        return f"blk.{index}.{NAMES[rest]}.weight"
    return f"{NAMES[name]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp has them: row i of a half beside row i of the other."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    pairs = [row for head in rows for pair in zip(head[0], head[1], strict=True) for row in pair]
    return np.stack(pairs)


def write(
    path: Path, model: LlamaForCausalLM, kind: str = "F32", *, leave_out: tuple[str, ...] = (),
    architecture: str = "llama", **metadata: Any,
) -> Path:  # fmt: skip
    """The model as a GGUF file, its matrices as `kind`; keys of metadata are added or replaced."""
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    tokens, merges = vocabulary()
    values: dict[str, Any] = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": 5000.0,
        f"{architecture}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }
    for key, value in {**values, **{k.replace("__", "."): v for k, v in metadata.items()}}.items():
        if value is None:
            continue
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
               str: writer.add_string, list: writer.add_array}[type(value)]  # fmt: skip
        add(key, value)
    for name, tensor in model.state_dict().items():
        stored = stored_name(name)
        if stored in leave_out or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        array = tensor.numpy()
        if "q_proj" in name:
            array = interleaved(array, config.num_attention_heads)
        if "k_proj" in name:
            array = interleaved(array, config.num_key_value_heads)
        quantization = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else kind]
        packed = gguf.quants.quantize(np.ascontiguousarray(array), quantization)
        writer.add_tensor(stored, packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
