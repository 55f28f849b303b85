"""The noise of bfloat16 has the size of its rounding errors and reaches every layer."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from harness.suites.distributions import compare
from harness.suites.noise import NoisyLogits, bfloat16_noise, with_noise


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def opt() -> OPTForCausalLM:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=32,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


IDS = torch.arange(40).remainder(64)[None]


def unit(values: torch.Tensor) -> torch.Tensor:
    """The distance of bfloat16 numbers at `values`, from their bits."""
    bits = values.abs().float().view(torch.int32) & 0x7F800000
    return bits.view(torch.float32) * 2.0**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_number_moves_by_one_unit_with_the_variance_of_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = (torch.randn(400_000) * 3).to(dtype)
    found = with_noise(values, torch.Generator().manual_seed(1))
    assert found.dtype == dtype
    # Small float16 have no digits for a step, and one across a power of two loses the last one.
    large = values.abs() > 0.01
    steps = ((found.double() - values.double()) / unit(values).double())[large]
    assert float((steps - steps.round()).abs().max()) <= 0.125
    steps = steps.round()
    assert steps.unique().tolist() == [-1.0, 0.0, 1.0]
    for step in (-1.0, 1.0):
        assert float((steps == step).double().mean()) == pytest.approx(1 / 24, rel=0.03)
    assert float(steps.var()) == pytest.approx(1 / 12, rel=0.02)
    rounded = torch.randn(400_000) * 3
    error = (rounded.bfloat16().double() - rounded.double()) / unit(rounded).double()
    assert float(steps.var()) == pytest.approx(float(error.var()), rel=0.05)


def test_zero_is_exact() -> None:
    values = torch.zeros(10_000)
    assert not with_noise(values, torch.Generator().manual_seed(0)).any()


@pytest.mark.parametrize("make", [llama, opt])
def test_every_layer_and_block_is_noisy_but_no_table(make: Any) -> None:
    model, seen = make(), set()
    names = {id(module): name for name, module in model.named_modules()}
    kept: dict[str, torch.Tensor] = {}

    def before(module: nn.Module, _given: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        if isinstance(value, torch.Tensor):
            kept[names[id(module)]] = value

    def after(module: nn.Module, _given: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple) else output
        name = names[id(module)]
        if name in kept and not torch.equal(kept[name], value):
            seen.add(name)

    hooks = [module.register_forward_hook(before) for module in model.modules()]
    with torch.inference_mode(), bfloat16_noise(model, 0):
        hooks += [module.register_forward_hook(after) for module in model.modules()]
        model(input_ids=IDS)
    for each in hooks:
        each.remove()
    blocks = {f"{name}.{n}" for name, each in model.named_modules()
              if isinstance(each, nn.ModuleList) for n in range(len(each))}  # fmt: skip
    layers = {name for name, each in model.named_modules()
              if isinstance(each, nn.Linear | nn.LayerNorm) or "norm" in name}  # fmt: skip
    assert blocks
    assert blocks | layers <= seen
    tables = {name for name, each in model.named_modules() if isinstance(each, nn.Embedding)}
    assert not tables & seen


def test_the_model_is_as_before() -> None:
    model = llama()
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
        noisy = NoisyLogits(model, IDS, 3)
        assert torch.equal(model(input_ids=IDS).logits, expected)
        first = noisy[-1:, slice(0, 40)]
        assert torch.equal(model(input_ids=IDS).logits, expected)
        assert not torch.equal(first, expected)
        assert torch.equal(NoisyLogits(model, IDS, 3)[-1:, slice(0, 40)], first)
        assert not torch.equal(NoisyLogits(model, IDS, 4)[-1:, slice(0, 40)], first)


def test_its_divergence_is_that_of_rounding_to_bfloat16() -> None:
    """The oracle rounds what layers and blocks give, instead of moving it by chance."""
    model = llama()

    def rounded(module: nn.Module, _given: Any, output: Any) -> Any:
        return output.bfloat16().float() if isinstance(output, torch.Tensor) else output

    with torch.inference_mode():
        expected = model(input_ids=IDS).logits[0]
        noise = torch.stack([
            compare(expected, NoisyLogits(model, IDS, seed)[-1:, slice(0, 40)][0]).divergence
            for seed in range(8)
        ]).mean()  # fmt: skip
        layers = [each for each in model.modules() if not list(each.children())]
        layers = [each for each in layers if not isinstance(each, nn.Embedding)]
        hooks = [each.register_forward_hook(rounded) for each in [*layers, *model.model.layers]]
        true = compare(expected, model(input_ids=IDS).logits[0]).divergence.mean()
        for each in hooks:
            each.remove()
    assert float(noise) == pytest.approx(float(true), rel=0.5)
    assert float(true) > 1e-6
