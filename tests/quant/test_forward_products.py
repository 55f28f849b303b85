"""What runs during calibration: linear layers by oneDNN, causal attention by its operator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from cuda_ext import attention, ops, packed
from quant import products
from quant.calibrate.capture import check_streaming, streamed_logits
from quant.calibrate.stream import quantize_model
from quant.config import QuantizationConfig
from quant.forward_products import forward_products
from quant.linear import QuantLinear
from quant.scheme import Scheme
from quant.solvers import gptq
from tests.oracles.random_weights import random_weight
from tests.quant.architectures import tiny_model

attend = functional.scaled_dot_product_attention


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


needs_kernels = pytest.mark.skipif(
    ops.why_unavailable(torch.device("cpu")) is not None, reason="no compiler: no kernels"
)


@pytest.mark.parametrize("bias", [None, random(300, seed=3)], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(64, 256), (4, 32, 256), (2, 3, 256)])
def test_linear_layers_inside_forward_products(shape, bias):
    x, weight = random(*shape, seed=1), random(300, 256, seed=2)
    with torch.no_grad():
        expected = functional.linear(x, weight, bias)
        with forward_products("reference"):
            assert torch.equal(functional.linear(x, weight, bias), expected)
            assert not products._by_onednn(random(200, 200), random(200, 200))
        with forward_products("cpu"):
            found = functional.linear(x, weight, bias)
            halves = functional.linear(x.bfloat16(), weight.bfloat16())
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert halves.dtype == torch.bfloat16
    assert torch.equal(functional.linear(x, weight, bias), expected), "nothing is left behind"


@needs_kernels
@pytest.mark.parametrize("scheme", [Scheme(4, 64), Scheme(5, 64)], ids=lambda each: each.name)
def test_many_rows_of_packed_layers_run_in_the_same_library(scheme, monkeypatch):
    """Packed layers of long windows once ran in MKL beside full-precision layers in oneDNN."""
    layer = QuantLinear.from_quantized(random_weight(scheme, 300, 256))
    rows = packed.rows_from_codes(torch.float32)
    few, many = random(rows, 256, seed=1), random(rows + 1, 256, seed=1)
    seen: list[int] = []

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(len(input))
        return functional.linear(input, weight, bias)

    monkeypatch.setattr("quant.forward_products.linear", linear)
    with torch.no_grad(), forward_products("cpu"):
        layer(few)
        found = layer(many)
    assert seen == ([rows + 1] if layer.tiled else [rows, rows + 1]), layer.way
    torch.testing.assert_close(found, many @ layer.dequantize().T, rtol=1e-5, atol=1e-4)


@needs_kernels
def test_a_bias_is_checked_with_any_number_of_rows():
    layer = QuantLinear.from_quantized(random_weight(Scheme(4, 64), 48, 128))
    held = layer.kernel_buffers()
    for rows in (3, packed.rows_from_codes(torch.float32) + 1):
        for bias in (torch.ones(1), torch.ones(48, dtype=torch.int32)):
            with pytest.raises(RuntimeError, match="packed_linear: bias is"):
                packed.linear(
                    random(rows, 128), held, bits=4, out_features=48, group_size=64, bias=bias
                )


def test_gradients_keep_torchs_own_linear():
    x, weight = random(64, 256), random(300, 256, seed=2).requires_grad_()
    with forward_products("cpu"):
        functional.linear(x, weight).sum().backward()
    assert weight.grad is not None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Shapes and scales that went to the operator."""
    if packed.cpu_isa() == "portable":
        pytest.skip("attention is torch's without AVX2")
    found: list[tuple[Any, ...]] = []
    original = attention.causal_attention

    def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        found.append((*query.shape, key.shape[1], scale))
        return original(query, key, value, scale)

    monkeypatch.setattr(attention, "causal_attention", causal_attention)
    return found


def qkv(shape: tuple[int, ...] = (2, 4, 20, 16), shared: int = 4, keys: int = 20) -> list[Tensor]:
    batch, heads, tokens, width = shape
    return [
        random(batch, count, length, width, seed=seed)
        for seed, (count, length) in enumerate(((heads, tokens), (shared, keys), (shared, keys)))
    ]


@needs_kernels
@torch.no_grad()
def test_causal_attention_goes_to_the_operator(calls):
    query, key, value = qkv(shared=2)
    expected = attend(query, key, value, is_causal=True, enable_gqa=True)
    fixed = attend(query, key, value, None, 0.0, True, scale=0.5, enable_gqa=True)
    with forward_products("reference"):
        assert torch.equal(attend(query, key, value, is_causal=True, enable_gqa=True), expected)
    assert calls == []
    with forward_products("cpu"):
        found = attend(query, key, value, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(
            attend(query, key, value, None, 0.0, True, scale=0.5, enable_gqa=True), fixed
        )
    assert calls == [(2, 4, 20, 16, 2, 0.25), (2, 4, 20, 16, 2, 0.5)]
    torch.testing.assert_close(found, expected)
    assert torch.equal(attend(query, key, value, is_causal=True, enable_gqa=True), expected)
    assert len(calls) == 2, "nothing is left behind"


MASK = torch.ones(20, 20, dtype=torch.bool).tril()
OTHERS: dict[str, Callable[[], Tensor]] = {
    "mask": lambda: attend(*qkv(), attn_mask=MASK),
    "not causal": lambda: attend(*qkv()),
    "dropout": lambda: attend(*qkv(), dropout_p=0.5, is_causal=True),
    "more keys": lambda: attend(*qkv(keys=30), is_causal=True),
    "one token": lambda: attend(*qkv((2, 4, 1, 16), keys=1), is_causal=True),
    "width": lambda: attend(*qkv((2, 4, 20, 24)), is_causal=True),
    "wide": lambda: attend(*qkv((1, 1, 20, 272), shared=1), is_causal=True),
    "no batch": lambda: attend(*[t[0] for t in qkv()], is_causal=True),
    "half": lambda: attend(*[t.bfloat16() for t in qkv()], is_causal=True),
    "double": lambda: attend(*[t.double() for t in qkv()], is_causal=True),
    "strides": lambda: attend(
        *[t.mT.contiguous().mT for t in qkv((2, 4, 16, 16), keys=16)], is_causal=True
    ),
    "scale": lambda: attend(*qkv(), is_causal=True, scale=-0.3),
    "narrow value": lambda: attend(*qkv()[:2], random(2, 4, 20, 8), is_causal=True),
}


@needs_kernels
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@torch.no_grad()
def test_everything_else_is_torchs_bit_for_bit(calls, other):
    torch.manual_seed(0)
    expected = other()
    torch.manual_seed(0)
    with forward_products("cpu"):
        found = other()
    # torch answers a negative scale with NaN.
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert calls == []


@needs_kernels
def test_torchs_own_errors_stay(calls):
    with torch.no_grad(), forward_products("cpu"), pytest.raises(RuntimeError):
        attend(*qkv(shared=2), is_causal=True)  # grouped heads without enable_gqa
    assert calls == []


@needs_kernels
def test_gradients_keep_torchs_own_attention(calls):
    query, key, value = qkv()
    query.requires_grad_()
    with forward_products("cpu"):
        attend(query, key, value, is_causal=True).sum().backward()
        assert query.grad is not None
        with torch.no_grad():
            attend(query, key, value, is_causal=True)
    assert len(calls) == 1


def test_without_the_operator_the_log_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(ops, "why_unavailable", lambda _: "no C++ compiler is on PATH.")
    assert_said_once(caplog, "no C++ compiler is on PATH.")


@needs_kernels
def test_where_the_operator_is_slower_the_log_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv("BITSWEEP_CPU_ISA", "portable")
    assert_said_once(caplog, "without AVX2 these operators are slower")


def assert_said_once(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    products.say_once.cache_clear()
    query, key, value = qkv()
    with torch.no_grad():
        expected = attend(query, key, value, is_causal=True)
        for _ in range(2):
            with forward_products("cpu"):
                assert torch.equal(attend(query, key, value, is_causal=True), expected)
                assert torch.equal(attend(query, key, value, is_causal=True), expected)
    (message,) = caplog.messages
    assert message.startswith(
        "causal attention, norms, gates and rotary positions run in torch, not in operators of "
        f"bitsweep: {reason}"
    )
    assert message.endswith("Results differ by rounding only.")


def heads_of_16(name: str) -> PreTrainedModel:
    """A width that the operator takes; Llama's heads share keys and values in pairs."""
    return tiny_model(name, hidden_size=64, **WIDE[name])


def windows(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (40,), generator=generator) for _ in range(count)]


WIDE: dict[str, dict[str, int]] = {"opt": {"word_embed_proj_dim": 64}, "llama": {}}
SHARED = {"opt": 4, "llama": 2}


@needs_kernels
@pytest.mark.parametrize("name", WIDE)
@torch.no_grad()
def test_streamed_blocks_agree_with_torchs(calls, name):
    model, batch = heads_of_16(name), torch.stack(windows(3))
    expected = streamed_logits(model, batch)
    assert calls == []
    with forward_products("cpu"):
        check_streaming(model, *windows(2))
        found = streamed_logits(model, batch)
    assert {call[1:5] for call in calls} == {(4, 40, 16, SHARED[name])}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("name", WIDE)
def test_quantization_uses_it_with_every_kernel_but_the_reference(calls, name):
    losses = {}
    for kernel in ("reference", "cpu"):
        plan = QuantizationConfig(gptq.SOLVER, Scheme(4, 16), kernel=kernel)
        result = quantize_model(heads_of_16(name), windows(4), plan)
        losses[kernel] = torch.tensor([layer.loss for layer in result.layers])
        assert bool(calls) == (kernel == "cpu")
    torch.testing.assert_close(losses["cpu"], losses["reference"], rtol=0.02, atol=1e-6)
