"""Experts out of fused tensors: the same function, tensor by tensor what it was."""

import copy

import pytest
import torch

from quant.blocks import find_blocks, linear_layers
from quant.experts import Experts, fused_parts, routed_groups, unfuse
from tests.quant.mixtures import EXPERTS, HIDDEN, MIXTURES, fused_modules, tiny_mixture

TOKENS = torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", MIXTURES)
def test_the_unfused_model_computes_what_the_fused_one_does(name: str) -> None:
    model = tiny_mixture(name)
    own = copy.deepcopy(model)
    unfuse(own)
    assert not fused_modules(own)
    assert not any(parameter.dim() > 3 for parameter in own.parameters())
    with torch.no_grad():
        expected, found = model(TOKENS).logits, own(TOKENS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # The very weights: as many numbers, and each where Part says.
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in model.parameters())
    for full, part in fused_parts(own).items():
        fused = model.get_parameter(part.fused)[part.expert]
        assert torch.equal(own.get_parameter(full), part.of(fused))


def test_one_expert_by_hand_transposed_interleaved_and_with_biases() -> None:
    """gpt-oss: gate and up alternate, outputs come last, the gate is clamped."""
    fused = next(iter(fused_modules(tiny_mixture("gpt-oss")).values()))
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)).double()
    fused.double()
    made = x @ fused.gate_up_proj[2] + fused.gate_up_proj_bias[2]
    gate, up = made[:, 0::2].clamp(max=7.0), made[:, 1::2].clamp(-7.0, 7.0)
    expected = (up + 1) * gate * torch.sigmoid(1.702 * gate) @ fused.down_proj[2]
    model = tiny_mixture("gpt-oss").double()
    unfuse(model)
    expert = next(module for module in model.modules() if isinstance(module, Experts))[2]
    bias = fused.down_proj_bias[2]
    torch.testing.assert_close(expert(x), expected + bias)


def test_names_are_those_of_checkpoints_on_a_hub() -> None:
    named = {"mixtral": "mlp.experts.3.w1", "jamba": "feed_forward.experts.3.up_proj"}
    for name, layer in named.items():
        model = tiny_mixture(name)
        unfuse(model)
        assert layer in linear_layers(find_blocks(model).modules[0])


def test_an_index_that_is_no_expert_adds_nothing() -> None:
    model = tiny_mixture("qwen3-moe")
    unfuse(model)
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    x = torch.randn(3, HIDDEN)
    index = torch.tensor([[0, EXPERTS], [EXPERTS, EXPERTS], [1, 0]])
    weights = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75]])
    found = experts(x, index, weights)
    assert not found[1].any()
    torch.testing.assert_close(found[0], 0.5 * experts[0](x[:1])[0])
    torch.testing.assert_close(found[2], 0.25 * experts[1](x[2:])[0] + 0.75 * experts[0](x[2:])[0])


def test_groups_are_known_without_a_token() -> None:
    model = tiny_mixture("mixtral")
    unfuse(model)
    first, down = routed_groups(find_blocks(model).modules[0])
    assert first == tuple((f"mlp.experts.{e}.w1", f"mlp.experts.{e}.w3") for e in range(EXPERTS))
    assert down == tuple((f"mlp.experts.{e}.w2",) for e in range(EXPERTS))
