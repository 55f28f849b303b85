"""Folders of tiny models as transformers saves them with HQQ, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.oracles.textbook_hqq import state
from tests.quant.tiny_checkpoints import CONFIGS, edit_config


class Kind(NamedTuple):
    """One way to quantize all layers; a group_size of None is one group per row or column."""

    nbits: float
    group_size: int | None
    axis: int = 1
    dtype: str = "float16"
    viewed: bool = False


def parameters(kind: Kind) -> dict[str, Any]:
    """One layer's part of a configuration."""
    return {
        "offload_meta": False,
        "scale_quant_params": None,
        "weight_quant_params": {
            "axis": kind.axis, "channel_wise": True, "group_size": kind.group_size,
            "nbits": kind.nbits, "optimize": True, "round_zero": kind.nbits == 4,
            "view_as_float": kind.viewed,
        },
        "zero_quant_params": None,
    }  # fmt: skip


def configuration(kind: Kind) -> dict[str, Any]:
    """What transformers 4.57 writes into config.json."""
    return {
        "quant_config": parameters(kind), "quant_method": "hqq", "skip_modules": ["lm_head"],
    }  # fmt: skip


def write(folder: Path, kind: Kind) -> tuple[PreTrainedModel, dict[str, dict[str, Tensor]]]:
    """Write a tiny model; return it with the textbook's values, and its layers' tensors."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    plain.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    layers = {}
    for index, (name, module) in enumerate(plain.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            outputs, inputs = module.weight.shape
            size = kind.group_size or (inputs if kind.axis == 1 else outputs)
            stored, values = state(
                outputs, inputs, kind.nbits, size, kind.axis, kind.dtype,
                viewed=kind.viewed, seed=index,
            )  # fmt: skip
            module.weight.data.copy_(values)
            layers[name] = stored
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{part}": tensor for part, tensor in stored.items()}
    save_file(tensors, folder / "model.safetensors")
    edit_config(lambda config: config.update(quantization_config=configuration(kind)))(folder)
    return plain, layers
