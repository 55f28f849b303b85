"""Folders of tiny models with layers of NVFP4 or MXFP4, as compressed-tensors saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from tests.oracles.textbook_fp4 import dequantized, state
from tests.quant.tiny_checkpoints import SPECIAL, edit_config

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, **SPECIAL,
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "nvfp4": {
        "group_size": 16, "strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn",
    },
    "mxfp4": {"group_size": 32, "strategy": "group", "scale_dtype": "torch.uint8"},
}  # fmt: skip


def configuration(kind: str, *, inputs_too: bool = False) -> dict[str, Any]:
    """What compressed-tensors 0.20 writes into config.json."""
    numbers = {"num_bits": 4, "type": "float", "symmetric": True, **SETTINGS[kind]}
    group = {
        "format": f"{kind}-pack-quantized",
        "input_activations": {**numbers, "dynamic": "local"} if inputs_too else None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {**numbers, "dynamic": False},
    }
    return {
        "config_groups": {"group_0": group},
        "format": f"{kind}-pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0",
    }


def write(
    folder: Path, kind: str, *, inputs_too: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, dict[str, dict[str, Tensor]]]:
    """Write a tiny model; return it with the textbook's values, and its layers' tensors."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(CONFIG).eval().to(dtype)
    return plain, rewrite(folder, plain, kind, inputs_too=inputs_too)


def rewrite(
    folder: Path, plain: PreTrainedModel, kind: str, *, inputs_too: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Write a model with random quantized layers into a folder; return their tensors.

    The layers of `plain` get the textbook's values.
    """
    layers = {}
    for index, (name, module) in enumerate(plain.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            stored = state(kind, *module.weight.shape, seed=index, inputs_too=inputs_too)
            module.weight.data.copy_(dequantized(stored))
            layers[name] = stored
    plain.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, stored in layers.items():
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
    save_file(tensors, folder / "model.safetensors")
    said = configuration(kind, inputs_too=inputs_too)
    edit_config(lambda config: config.update(quantization_config=said))(folder)
    return layers
