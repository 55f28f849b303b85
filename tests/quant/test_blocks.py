"""Every architecture: blocks and layers are found, and weights go in and out as [out, in]."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config
from transformers.pytorch_utils import Conv1D

from quant.blocks import (
    find_blocks,
    linear_layers,
    require_quantizable,
    require_sound,
    set_weight_matrix,
    weight_matrix,
)
from quant.errors import ModelStructureError, NonFiniteError
from tests.quant.architectures import BLOCKS, CONFIGS, LINEARS_PER_BLOCK, tiny_model


@pytest.mark.parametrize("name", CONFIGS)
def test_every_linear_inside_the_blocks_is_found_and_no_other(name: str) -> None:
    model = tiny_model(name)
    blocks = find_blocks(model)
    assert len(blocks) == BLOCKS
    assert model.get_submodule(blocks.name) is blocks.modules
    inside = {
        f"{blocks.block_name(index)}.{layer}"
        for index, block in enumerate(blocks.modules)
        for layer in linear_layers(block)
    }
    assert len(inside) == BLOCKS * LINEARS_PER_BLOCK[name]
    # Everything that is a matrix and not found is an embedding, a head or OPT's projections.
    rest = {
        n.removesuffix(".weight")
        for n, p in model.named_parameters()
        if p.dim() == 2 and n.removesuffix(".weight") not in inside
    }
    assert all(
        "embed" in n or "wte" in n or "wpe" in n or "head" in n or "project" in n for n in rest
    )


def test_definition_order() -> None:
    block = find_blocks(tiny_model("llama")).modules[0]
    assert list(linear_layers(block)) == [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]


@pytest.mark.parametrize("module", [nn.Linear(5, 3), Conv1D(3, 5)])
def test_weight_matrix_is_the_matrix_that_the_module_multiplies_by(module: nn.Module) -> None:
    x = torch.randn(7, 5)
    new = torch.randn(3, 5)
    assert weight_matrix(module).shape == (3, 5)
    set_weight_matrix(module, new)
    assert torch.equal(weight_matrix(module), new)
    assert module.weight.requires_grad
    torch.testing.assert_close(module(x), x @ new.T + module.bias)


def test_weights_are_rounded_to_the_dtype_of_the_module_or_refused() -> None:
    module = nn.Linear(4, 2).half()
    matrix = torch.full((2, 4), 1.0001)
    set_weight_matrix(module, matrix)
    assert torch.equal(module.weight, matrix.half())
    with pytest.raises(NonFiniteError, match=r"h\.0: 8 quantized weights .*float16"):
        set_weight_matrix(module, torch.full((2, 4), 1e5), "h.0")
    assert torch.equal(module.weight, matrix.half())  # nothing was written
    with pytest.raises(ModelStructureError, match=r"\(4, 2\) does not fit"):
        set_weight_matrix(module, matrix.T)


def test_a_model_without_matching_blocks_lists_what_it_has() -> None:
    model = tiny_model("opt")
    model.config.num_hidden_layers = 7
    with pytest.raises(
        ModelStructureError, match=r"no list .*=7.*model\.decoder\.layers: 3 x OPTDecoderLayer"
    ):
        find_blocks(model)


def test_two_lists_that_could_be_the_blocks_are_an_error() -> None:
    model = tiny_model("opt")
    model.more_layers = copy.deepcopy(model.model.decoder.layers)
    with pytest.raises(
        ModelStructureError, match=r"several lists .*more_layers: 3 x OPTDecoderLayer"
    ):
        find_blocks(model)


def test_a_list_inside_a_block_is_not_taken_for_the_blocks() -> None:
    model = tiny_model("opt")
    for block in model.model.decoder.layers:
        block.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(BLOCKS))
    assert find_blocks(model).name == "model.decoder.layers"


def test_the_text_decoder_wins_over_a_vision_tower_of_the_same_depth() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {**sizes, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma3Config(text_config={**text, "vocab_size": 32}, vision_config=vision)
    model = AutoModelForCausalLM.from_config(config)
    assert len(model.model.vision_tower.encoder.layers) == 2
    assert find_blocks(model).modules is model.model.language_model.layers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named_and_counted(value: float) -> None:
    model = tiny_model("gpt2")
    model.transformer.h[1].mlp.c_proj.weight.data[2, :5] = value
    with pytest.raises(NonFiniteError, match=r"^transformer\.h\.1\.mlp\.c_proj: 5 of 4096 weights"):
        require_sound(model.transformer.h[1], "transformer.h.1")


def test_weights_that_are_not_there_or_not_real_are_refused() -> None:
    model = tiny_model("opt")
    layer = model.model.decoder.layers[0].fc1
    layer.to("meta")
    with pytest.raises(ModelStructureError, match=r"layers\.0\.fc1: .*meta device"):
        require_sound(model.model.decoder.layers[0], "model.decoder.layers.0")
    layer.weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelStructureError, match=r"layers\.0\.fc1: .*torch\.int8"):
        require_quantizable(find_blocks(model))
