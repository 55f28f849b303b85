"""Folders of tiny models as transformers saves them with bitsandbytes, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.oracles.textbook_bitsandbytes import dequantized, state
from tests.quant.tiny_checkpoints import CONFIGS, edit_config


def configuration(kind: str, *, nested: bool = False) -> dict[str, Any]:
    """What transformers 5.23 writes into config.json."""
    four = kind != "int8"
    return {
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kind if four else "fp4",
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "quant_method": "bitsandbytes",
    }


def write(
    folder: Path, kind: str, *, nested: bool = False, model: str = "llama"
) -> tuple[PreTrainedModel, dict[str, dict[str, Tensor]]]:
    """Write a tiny model; return it with the textbook's values, and its layers' tensors."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(CONFIGS[model]).eval()
    return plain, rewrite(folder, plain, kind, nested=nested)


def rewrite(
    folder: Path, plain: PreTrainedModel, kind: str, *, nested: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Write a model with random quantized layers into a folder; return their tensors.

    The layers of `plain` get the textbook's values.
    """
    layers = {}
    for index, (name, module) in enumerate(plain.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            stored = state(kind, *module.weight.shape, nested=nested, seed=index)
            module.weight.data.copy_(dequantized(stored))
            layers[name] = stored
    plain.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, stored in layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
    save_file(tensors, folder / "model.safetensors")
    said = configuration(kind, nested=nested)
    edit_config(lambda config: config.update(quantization_config=said))(folder)
    return layers
