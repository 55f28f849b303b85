"""Which modules run by the faster operators: those that do the same, whatever their names."""

import gc
import weakref

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from cuda_ext import elementwise, ops, packed
from quant.forward_modules import faster_modules
from quant.forward_products import forward_products
from tests.quant.architectures import tiny_model

pytestmark = pytest.mark.skipif(
    ops.why_unavailable(torch.device("cpu")) is not None, reason="no compiler: no kernels"
)


@pytest.fixture
def calls(monkeypatch):
    """Names of the operators that ran."""
    if packed.cpu_isa() == "portable":
        pytest.skip("without AVX2 torch's own operators run")
    found = []
    for name in ("rms_norm", "gated", "rotated"):
        original = getattr(elementwise, name)

        def call(*given, name=name, original=original):
            found.append(name)
            return original(*given)

        monkeypatch.setattr(elementwise, name, call)
    return found


def tokens():
    return torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))


# What a block calls: two norms, a gate, two rotations.
BLOCK = {
    "llama": (2, 1, 2),
    "mistral": (2, 1, 2),
    "qwen2": (2, 1, 2),
    "qwen3": (4, 1, 2),  # norms of the heads of query and key too
    "gemma": (0, 0, 2),
    "opt": (0, 0, 0),
}


@pytest.mark.parametrize("name", BLOCK)
@torch.no_grad()
def test_families(calls, name):
    model = tiny_model(name)
    expected = model(tokens()).logits
    assert calls == []
    with faster_modules(model):
        found = model(tokens()).logits
    norms, gates, rotations = BLOCK[name]
    blocks = model.config.num_hidden_layers
    assert calls.count("rms_norm") == norms * blocks + (norms > 0)
    assert calls.count("gated") == gates * blocks
    assert calls.count("rotated") == rotations * blocks
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    count = len(calls)
    assert torch.equal(model(tokens()).logits, expected), "nothing is left behind"
    assert len(calls) == count
    assert not any("forward" in module.__dict__ for module in model.modules())


@torch.no_grad()
def test_the_reference_kernel_and_an_error_leave_the_model_alone(calls):
    model = tiny_model("llama")
    expected = model(tokens()).logits
    with forward_products("reference", model):
        assert torch.equal(model(tokens()).logits, expected)
    with pytest.raises(KeyError), forward_products("cpu", model):
        raise KeyError
    assert torch.equal(model(tokens()).logits, expected)
    assert calls == []


def test_gradients_and_other_types_keep_the_models_own_code(calls):
    model = tiny_model("llama")
    with faster_modules(model):
        model(tokens()).logits.sum().backward()
    assert model.model.norm.weight.grad is not None
    with torch.no_grad():
        model = model.bfloat16()
        expected = model(tokens()).logits
        with faster_modules(model):
            assert torch.equal(model(tokens()).logits, expected)
    assert calls == []


class Norm(nn.Module):
    """An RMSNorm, but for the epsilon, which is not that of the attribute."""

    def __init__(self):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-5

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weight


class Feed(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))
        self.act_fn = ACT2FN[act]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class More(Feed):
    def forward(self, x):
        return super().forward(x) + x


@pytest.mark.parametrize(
    ("module", "taken"),
    [
        (Norm, False),
        (lambda: Feed("silu"), True),
        (lambda: Feed("gelu"), False),
        (lambda: More("silu"), False),
        (lambda: nn.Linear(8, 8), False),
    ],
)
@torch.no_grad()
def test_what_only_looks_alike_stays(calls, module, taken):
    made, x = module(), torch.randn(2, 3, 8)
    expected = made(x)
    with faster_modules(made):
        found = made(x)
    assert bool(calls) == taken
    torch.testing.assert_close(found, expected)
    assert taken or torch.equal(found, expected)


def test_models_are_not_kept():
    model = tiny_model("llama")
    with faster_modules(model):
        pass
    kept = weakref.ref(model.model.norm)
    del model
    gc.collect()
    assert kept() is None
