"""Tiny models holding the values of random quantized weights, and ways to edit their folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

import quant
from cuda_ext.layout import pack_codes
from quant.checkpoint.inspection import Inspection, inspect
from quant.checkpoint.source import ArtifactSource
from quant.scheme import Scheme
from quant.weight import QuantizedWeight
from tests.oracles.random_weights import random_weight
from tests.oracles.textbook_unpack import AWQ_OUTPUTS

SPECIAL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# 40 inputs and 72 outputs: no multiple of 32 anywhere.
CONFIGS = {
    "opt": OPTConfig(
        hidden_size=40, ffn_dim=72, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=40, **SPECIAL,
    ),
    "llama": LlamaConfig(
        hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False, **SPECIAL,
    ),
    "gpt2": GPT2Config(n_embd=40, n_inner=72, n_layer=2, n_head=4, n_positions=64, **SPECIAL),
}  # fmt: skip
TOKENS = torch.randint(3, 96, (2, 19), generator=torch.Generator().manual_seed(5))
METHOD = {"name": "random", "seed": 0}

Model = tuple[PreTrainedModel, dict[str, QuantizedWeight]]


def quantized(name: str, scheme: Scheme, scattered: bool = False) -> Model:
    """A tiny model holding the values of random quantized weights in the layers of its blocks."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    weights = {}
    for index, (layer, module) in enumerate(model.named_modules()):
        if not isinstance(module, nn.Linear | Conv1D) or layer == "lm_head":
            continue
        transposed = isinstance(module, Conv1D)
        outputs, inputs = module.weight.shape[::-1] if transposed else module.weight.shape
        weight = random_weight(scheme, outputs, inputs, scattered=scattered, seed=index)
        values = weight.dequantize()
        module.weight.data.copy_(values.t() if transposed else values)
        weights[layer] = weight
    return model, weights


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def read_as_written(
    folder: Path, plain: PreTrainedModel, layers: Mapping[str, Mapping[str, Tensor]]
) -> Inspection:
    """Hold a folder of layers that no kernel has against the model with the textbook's values.

    layers  tensors of every quantized layer: bits per weight count all their bytes.
    """
    weights = quant.load_weights(folder)
    assert weights.keys() == layers.keys()
    for name, weight in weights.items():
        assert torch.equal(weight.dequantize(), plain.get_submodule(name).weight)
    model = quant.load(folder)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)
    assert all("dequantizes first" in model.get_submodule(name).way for name in layers)
    held = sum(tensor.nbytes for stored in layers.values() for tensor in stored.values())
    count = sum(weight.codes.numel() for weight in weights.values())
    found = inspect(folder)
    assert found.bits_per_weight == 8 * held / count
    with ArtifactSource(folder) as source:
        of_files = {name: bits for name, (_, bits) in source.layer_bits().items()}
    assert of_files == {name: model.get_submodule(name).stored_bits for name in layers}
    return found


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return apply


def edit_tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def pack_awq(folder: Path, weights: dict[str, QuantizedWeight]) -> Path:
    """Rewrite a folder of 4-bit GPTQ weights as AutoAWQ packs them; gives the folder."""
    # Nibble k of a word holds output AWQ_OUTPUTS[k] of eight.
    order = list(AWQ_OUTPUTS)

    def words(codes: Tensor) -> Tensor:
        return pack_codes(codes.unflatten(1, (-1, 8))[..., order].flatten(1), 4)

    def repack(tensors: dict[str, Tensor]) -> None:
        for layer, weight in weights.items():
            assert weight.zero is not None
            del tensors[f"{layer}.g_idx"]
            tensors[f"{layer}.qweight"] = words(weight.codes.t())
            tensors[f"{layer}.qzeros"] = words(weight.zero.t())

    size = next(iter(weights.values())).scheme.group_size or -1
    awq = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    edit_tensors(repack)(folder)
    edit_config(lambda config: config.update(quantization_config=awq))(folder)
    return folder
