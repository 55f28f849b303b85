"""Tiny random models of every family, and the GGUF files that llama.cpp's converter makes of them.

Names of tensors come from the package's own table, not from ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from transformers import AutoConfig, AutoModelForCausalLM

from tests.quant.checkpoint.gguf_files import SPECIAL, interleaved, vocabulary

LAYERS, CONTEXT = 2, 128
_SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None,
    "vocab_size": len(vocabulary()[0]), "rope_theta": 5000.0,
}  # fmt: skip
_CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
_HEADS = {"attention.key_length": 32, "attention.value_length": 32}
# By general.architecture: model_type and fields of transformers, keys of the file.
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {"rope.dimension_count": 16}),
    "smollm3": (
        "smollm3",
        {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1], "use_sliding_window": False},
        {},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, {}),
    "qwen3": ("qwen3", {"head_dim": 32}, _HEADS),
    "gemma": ("gemma", {"head_dim": 32}, _HEADS),
    "gemma2": (
        "gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, **_CAPS},
        {**_HEADS, "attention.sliding_window": 8, **_CAPS},
    ),
    "gemma3": (
        "gemma3_text",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8,
         "num_hidden_layers": 7, "rope_local_base_freq": 10000.0,
         "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {**_HEADS, "attention.sliding_window": 8,
         "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi2": (
        "phi",
        {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
        {"rope.dimension_count": 8},
    ),
    "phi3": ("phi3", {"sliding_window": 40}, {"attention.sliding_window": 40}),
}  # fmt: skip


def model(family: str, model_type: str | None = None, **fields: Any) -> Any:
    """A random model of a family, or of another model_type that the file calls so, in eval mode."""
    torch.manual_seed(0)
    kind, own, _ = FAMILIES[family]
    config = AutoConfig.for_model(
        model_type or kind,
        **copy.deepcopy({**_SIZES, **own, **fields}),  # transformers adds to what it is given
    )
    made: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            scale = 0.2 if parameter.dim() == 2 else 0.5
            parameter.copy_(torch.randn_like(parameter) * scale)
    return made


def rounded(made: Any, kind: str) -> Any:
    """The model with the values that its file of this type gives back."""
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            stored = _stored(made, name, parameter.numpy())
            packed, used = _packed(stored, kind)
            value = torch.from_numpy(dequantize(packed, used).reshape(stored.shape).copy())
            parameter.copy_(value - 1 if _gemma_norm(made, name) else value)
    return made


def write(
    path: Path, family: str, made: Any, kind: str = "F32", *, tokenizer: dict[str, Any],
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
    more: dict[str, tuple[np.ndarray, Any]] | None = None, **metadata: Any,
) -> Path:  # fmt: skip
    """The model as a GGUF file, its matrices as `kind`.

    metadata replaces keys (__ for .; None leaves one out), `change` tensors; `more` are further
    tensors as they are stored, with their types.
    """
    config, own = made.config, FAMILIES[family][2]
    keys = {
        "block_count": config.num_hidden_layers, "context_length": CONTEXT,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "rope.freq_base": 5000.0, **own,
    }  # fmt: skip
    if family == "phi2":
        keys["attention.layer_norm_epsilon"] = config.layer_norm_eps
    else:
        keys["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
    values = {f"{family}.{key}": value for key, value in keys.items()} | tokenizer
    values |= {key.replace("__", "."): value for key, value in metadata.items()}
    names = gguf.get_tensor_name_map(
        {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[family],
        config.num_hidden_layers,
    )
    tensors = {}
    for name, tensor in made.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        array = _stored(made, name, tensor.numpy())
        if family in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = interleaved(array.reshape(array.shape[0], -1), heads).reshape(array.shape)
        tensors[stored] = array
    change(tensors)
    stored_as = {name: _packed(each, kind) for name, each in tensors.items()} | (more or {})
    return write_keys(path, family, values, stored_as)


def write_keys(
    path: Path, family: str, keys: dict[str, Any], tensors: dict[str, tuple[np.ndarray, Any]]
) -> Path:
    """A GGUF file of these keys (None: left out), and tensors with their types."""
    writer = gguf.GGUFWriter(path, family)
    for key, value in keys.items():
        if value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
                   str: writer.add_string, list: writer.add_array}[type(value)]  # fmt: skip
            add(key, value)
    for name, (packed, kind) in tensors.items():
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level(pre: str = "gpt-2") -> dict[str, Any]:
    """Keys of the byte-level tokenizer of `vocabulary`."""
    tokens, merges = vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }


def _packed(array: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    used = gguf.GGMLQuantizationType["F32" if array.ndim == 1 else kind]
    return quantize(np.ascontiguousarray(array), used), used


def _gemma_norm(made: Any, name: str) -> bool:
    return made.config.model_type.startswith("gemma") and name.endswith("norm.weight")


def _stored(made: Any, name: str, array: np.ndarray) -> np.ndarray:
    return array + 1 if _gemma_norm(made, name) else array
