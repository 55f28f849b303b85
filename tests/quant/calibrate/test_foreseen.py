"""A skeleton tells of transforms what the quantization of the model with its weights will find."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from quant.calibrate.foreseen import CannotLook, Foreseen, foresee
from quant.calibrate.stream import quantize_model
from quant.checkpoint.skeleton import parameters_on_meta
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.experts import unfuse
from quant.rules import Rules
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.transforms import awq, equalize, repquant, residual_hadamard, smoothquant
from quant.transforms.base import Transform
from quant.transforms.foreseen import input_refusal, no_rotation
from tests.quant.architectures import CONFIGS, HIDDEN, VOCABULARY, random_windows
from tests.quant.mixtures import _SHARED, MIXTURES

LIKE_LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "sliding_window": 8,
    "rotary_dim": 8,
}  # fmt: skip
NORMS_APART = ("olmo", "olmo2", "glm4", "exaone4")  # without parameters, or behind the layers
OTHERS = (
    *("cohere2", "starcoder2", "granite", "gemma3_text", "phi3", "nemotron", "glm", "persimmon"),
    *("biogpt", "helium", "smollm3", "stablelm", "gptj", "codegen", "gpt_neo", "mpt"),
    *("gpt_bigcode", "mamba"),
)
# One of every sort: with all biases or none, other norms before, between and behind the layers.
FEW = ("opt", "opt-350m", "bloom", "llama", "gemma2", "falcon", "olmo", "olmo2", "gpt-oss")
TRANSFORMS: dict[str, tuple[Transform, Any]] = {
    "residual_hadamard": (residual_hadamard.TRANSFORM, None),
    "smoothquant": (smoothquant.TRANSFORM, None),
    "repquant": (repquant.TRANSFORM, None),
    "repquant, scale only": (repquant.TRANSFORM, repquant.Options(shift=False)),
}
MORE = {"awq": (awq.TRANSFORM, None), "equalize": (equalize.TRANSFORM, None)}
SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def config_of(name: str) -> PreTrainedConfig:
    if name in MIXTURES:
        kind, settings = MIXTURES[name]
        return kind(**{**_SHARED, **settings})
    if name in CONFIGS:
        kind, settings = CONFIGS[name]
        config: PreTrainedConfig = kind(**{**SPECIAL, **settings})
    else:
        config = AutoConfig.for_model(name, **{**SPECIAL, **LIKE_LLAMA})
    return config


def two_blocks(config: PreTrainedConfig) -> PreTrainedConfig:
    if getattr(config, "attention_types", None) is None:  # GPT-Neo says their number there
        config.num_hidden_layers = 2
    return config


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    with parameters_on_meta():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        unfuse(model)
    return model.eval()


def with_weights(config: PreTrainedConfig) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for value in model.parameters():
        random = torch.randn(value.shape, generator=generator)
        value.data = random * 0.2 if value.dim() > 1 else value.data + random * 0.3
    return model.eval()


def foreseen_refusal(found: Foreseen, transform: Transform, options: Any) -> str | None:
    options = transform.options() if options is None else options
    if transform.residual is not None:
        return None if found.stream is None else no_rotation("it", found.stream)
    facts: Any = found
    return transform.unfit(options, facts, Scheme(4)) or input_refusal(
        transform, options, found.inputs
    )


def refused(model: PreTrainedModel, transform: Transform, options: Any) -> str | None:
    """What the quantization says, which runs the model with its weights."""
    asked = QuantizationConfig(
        rtn.SOLVER, Scheme(4), transforms=((transform, options),), rules=Rules(partial=True)
    )
    try:
        quantize_model(copy.deepcopy(model), random_windows(2, 8), asked)
    except QuantizationError as error:
        return str(error)
    return None


def compare(name: str, transforms: dict[str, tuple[Transform, Any]]) -> None:
    found = foresee(skeleton(two_blocks(config_of(name))))
    model = with_weights(two_blocks(config_of(name)))
    assert found.inputs
    for transform, options in transforms.values():
        said, truth = (
            foreseen_refusal(found, transform, options),
            refused(model, transform, options),
        )
        # Random weights may leave nothing to change, which no plan knows.
        if truth is None or "finds nothing to change" in truth:
            assert said is None, f"{name}: {transform.name} would be refused: {said}"
        else:
            assert said is not None, f"{name}: {transform.name} would not be refused: {truth}"


@pytest.mark.parametrize("name", FEW)
def test_a_plan_refuses_what_the_quantization_refuses(name: str) -> None:
    compare(name, TRANSFORMS)


@pytest.mark.long
@pytest.mark.parametrize("name", [*CONFIGS, *NORMS_APART, *MIXTURES, *OTHERS])
def test_a_plan_refuses_what_the_quantization_refuses_for_all_families(name: str) -> None:
    compare(name, TRANSFORMS | MORE)


def test_the_reason_is_the_structure_of_the_family() -> None:
    gemma = foresee(skeleton(config_of("gemma2")))
    assert gemma.stream == (
        "model.layers.0.post_attention_layernorm normalizes the output of self_attn.o_proj before "
        "it is added to the stream"
    )
    bloom = foresee(skeleton(config_of("bloom")))
    assert bloom.stream is not None
    assert "(transformer.word_embeddings_layernorm comes in between)" in bloom.stream
    opt = foresee(skeleton(config_of("opt")))
    assert opt.stream is None
    first = opt.inputs[0]
    assert (first.layer, first.maker) == (
        "model.decoder.layers.0.self_attn.q_proj",
        "self_attn_layer_norm",
    )
    assert first.biased
    assert first.scales
    assert first.shifts
    llama = foresee(skeleton(config_of("llama")))
    assert [each.shifts for each in llama.inputs if each.unmade is None] == [False, False]
    olmo = foresee(skeleton(config_of("olmo")))
    assert {each.unmade for each in olmo.inputs} >= {
        "input_layernorm, which makes its input, has no parameters"
    }


def test_what_a_transform_keeps_or_folds_further_in_front_is_not_refused() -> None:
    found = foresee(skeleton(config_of("olmo2")))
    kept = smoothquant.Options(keep="where_needed")
    assert input_refusal(smoothquant.TRANSFORM, kept, found.inputs) is None
    assert input_refusal(awq.TRANSFORM, awq.Options(), found.inputs) is None
    said = input_refusal(smoothquant.TRANSFORM, smoothquant.Options(), found.inputs)
    assert said is not None
    assert said.startswith(
        "changed no layer of this model (no module of the block makes its input)"
    )


def test_blocks_of_every_kind_are_looked_at() -> None:
    model = skeleton(config_of("llama"))
    for name in ("q_proj", "k_proj", "v_proj"):
        layer = model.model.layers[-1].self_attn.get_submodule(name)
        layer.bias = nn.Parameter(layer.weight.new_empty(layer.out_features), requires_grad=False)
    found = foresee(model)
    (biased,) = [each for each in found.inputs if each.biased]
    assert biased.layer == "model.layers.2.self_attn.q_proj"
    assert "model.layers.0.self_attn.q_proj" in {each.layer for each in found.inputs}


def test_a_model_that_asks_for_values_is_not_looked_at() -> None:
    model = skeleton(config_of("llama"))
    plain = model.model.norm.forward

    def asks(hidden: torch.Tensor) -> torch.Tensor:
        return plain(hidden) if hidden.sum().item() > 0 else hidden

    model.model.norm.forward = asks
    with pytest.raises(CannotLook, match=r"item\(\) cannot be called on meta"):
        foresee(model)


def test_buffers_of_a_skeleton_keep_their_values() -> None:
    model = skeleton(config_of("llama"))
    before = {name: value.clone() for name, value in model.named_buffers()}
    foresee(model)
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(isinstance(value, nn.Parameter) and value.is_meta for value in model.parameters())
