"""QuantLinear holds exactly what was quantized and multiplies with exactly that."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cuda_ext import ops
from cuda_ext.ops import KernelUnavailable, resolve_kernel
from quant.linear import QuantLinear, pack, packed_bytes, packed_shapes
from quant.scheme import Scheme
from tests.oracles.random_weights import random_weight, same

SCHEMES = [
    Scheme(2),
    Scheme(3),
    Scheme(3, group_size=8),
    Scheme(4, group_size=8, symmetric=True),
    Scheme(4, group_size=20, scale_dtype="bfloat16"),
    Scheme(4, group_size=32),  # of 40 inputs, the last group holds 8
    Scheme(2, group_size=32, levels="ternary"),
    Scheme(5, group_size=16),
    Scheme(6),
    Scheme(7, group_size=32, scale_dtype="float32"),
    Scheme(8, scale_dtype="float32"),
    Scheme(2, levels="ternary"),
    Scheme(2, group_size=8, levels="ternary"),
]


@given(
    bits=st.sampled_from((2, 3, 4, 5, 6, 7, 8)),
    outputs=st.integers(1, 40),
    group=st.integers(1, 12),
    inputs=st.integers(1, 72),
    ternary=st.booleans(),
    scattered=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_round_trip(
    bits: int, outputs: int, group: int, inputs: int, ternary: bool, scattered: bool, seed: int
) -> None:
    levels = "ternary" if ternary else "uniform"
    scheme = Scheme(2 if ternary else bits, group_size=group, levels=levels)
    weight = random_weight(scheme, outputs, inputs, scattered=scattered, seed=seed)
    layer = QuantLinear.from_quantized(weight)
    assert same(layer.quantized_weight(), weight)
    assert torch.equal(layer.dequantize(), weight.dequantize())


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_forward_is_the_linear_map_of_the_values(scheme: Scheme, scattered: bool) -> None:
    weight = random_weight(scheme, 25, 40, scattered=scattered)
    bias = torch.randn(25, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(2))
    expected = functional.linear(x.double(), weight.dequantize().double(), bias.double())
    for with_bias, wanted in ((bias, expected), (None, expected - bias.double())):
        y = QuantLinear.from_quantized(weight, with_bias)(x)
        torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def test_buffers_are_the_tensors_of_a_gptq_checkpoint() -> None:
    layer = QuantLinear.from_quantized(random_weight(Scheme(3, group_size=8), 25, 40))
    state = layer.state_dict()
    assert {name: (tuple(t.shape), t.dtype) for name, t in state.items()} == {
        "qweight": ((4, 25), torch.int32),
        "scales": ((5, 25), torch.float16),
        "qzeros": ((5, 3), torch.int32),
    }
    ternary = QuantLinear.from_quantized(
        random_weight(Scheme(2, group_size=8, levels="ternary"), 25, 40, scattered=True),
        bias=torch.zeros(25),
    )
    shapes = {name: tuple(buffer.shape) for name, buffer in ternary.named_buffers()}
    assert shapes == {
        "qweight": (3, 25),
        "scales": (5, 25),
        "scales_negative": (5, 25),
        "g_idx": (40,),
        "bias": (25,),
    }
    assert not list(layer.parameters())


def test_literal_bytes_of_a_layer() -> None:
    """Golden: codes 0..7 down each of two outputs, zero-points 3 and 5, 4 bits."""
    scheme = Scheme(4)
    weight = random_weight(scheme, 2, 8)
    weight.codes.copy_(torch.stack([torch.arange(8), 7 - torch.arange(8)]))
    assert weight.zero is not None
    weight.zero.copy_(torch.tensor([[3], [5]]))
    packed = pack(weight)
    assert packed["qweight"].tolist() == [[0x76543210, 0x01234567]]
    assert packed["qzeros"].tolist() == [[0x53]]


def test_casting_the_model_keeps_the_scales() -> None:
    weight = random_weight(Scheme(4, group_size=8), 25, 40)
    layer = QuantLinear.from_quantized(weight, torch.zeros(25))
    for cast in (torch.bfloat16, torch.float32, torch.float16):
        layer = layer.to(cast)
        assert layer.scales.dtype == torch.float16
        assert layer.bias is not None
        assert layer.bias.dtype == cast
        assert torch.equal(layer.dequantize(), weight.dequantize())
        assert layer(torch.ones(1, 40, dtype=cast)).dtype == cast
    assert torch.equal(copy.deepcopy(layer).dequantize(), weight.dequantize())
    assert layer.to("meta").scales.device.type == "meta"


def test_rounding_happens_once() -> None:
    weight = random_weight(Scheme(4, group_size=8), 25, 40)
    layer = QuantLinear.from_quantized(weight)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(layer.dequantize(dtype), weight.dequantize().to(dtype))


def test_buffers_that_do_not_fit_are_named() -> None:
    packed = pack(random_weight(Scheme(4, group_size=8), 25, 40))
    with pytest.raises(ValueError, match=r"do not fit w3g8 with 40 inputs and 25 outputs"):
        QuantLinear(packed, Scheme(3, group_size=8), 40, None, "auto")
    del packed["qzeros"]
    with pytest.raises(ValueError, match=r"expected .*qzeros"):
        QuantLinear(packed, Scheme(4, group_size=8), 40, None, "auto")


def test_kernel_is_resolved_when_the_layer_is_made() -> None:
    weight = random_weight(Scheme(4), 8, 8)
    assert QuantLinear.from_quantized(weight, kernel="auto").kernel == resolve_kernel("auto")
    with pytest.raises(KernelUnavailable, match="kernel='cuda'"):
        QuantLinear.from_quantized(weight, kernel="cuda")
    reference = QuantLinear.from_quantized(weight, kernel="reference")
    assert "scheme=w4, kernel=reference" in repr(reference)
    assert not reference.tiled


def test_packed_shapes_of_real_layers() -> None:
    """OPT-125M's fc1 at 3 bits in groups of 128: words of 32 codes of 3 bits in 3 words."""
    assert packed_shapes(Scheme(3, group_size=128), 768, 3072, g_idx=True) == {
        "qweight": (72, 3072),
        "scales": (6, 3072),
        "qzeros": (6, 288),
        "g_idx": (768,),
    }


TILED = [Scheme(3, group_size=32), Scheme(4), Scheme(2, group_size=64, levels="ternary")]


@pytest.mark.parametrize("scheme", TILED, ids=lambda scheme: scheme.name)
def test_the_kernel_layout_is_not_seen_from_outside(scheme: Scheme) -> None:
    """State dict, buffers by name, copies and casts are those of a layer in GPTQ's buffers."""
    if resolve_kernel("auto") == "reference":
        pytest.skip("no compiled kernels here")
    weight = random_weight(scheme, 25, 128)
    layer = QuantLinear.from_quantized(weight, torch.zeros(25), kernel="cpu")
    plain = QuantLinear.from_quantized(weight, torch.zeros(25), kernel="reference")
    assert layer.tiled
    state, expected = layer.state_dict(), plain.state_dict()
    assert list(state.keys() ^ expected.keys()) == []
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(layer.qweight, plain.qweight)
    assert layer.g_idx is None
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), plain(x))
    other = QuantLinear.from_quantized(random_weight(scheme, 25, 128, seed=5), torch.ones(25))
    other.load_state_dict(expected)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    assert layer.to("meta").scales.device.type == "meta"
    other.to(torch.bfloat16)
    assert other.scales.dtype == torch.float16
    assert other(x.bfloat16()).dtype == torch.bfloat16
    assert other(x.double()).dtype == torch.float64


@pytest.mark.parametrize("scheme", [Scheme(5, 64), Scheme(4, 16)], ids=lambda each: each.name)
def test_layers_without_tiles_compile_and_check_their_input(scheme: Scheme) -> None:
    """They multiply by the decoded weight; compiled graphs have the operator."""
    layer = QuantLinear.from_quantized(random_weight(scheme, 25, 128))
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match=r"x is torch\.int64"):
        layer(torch.ones(2, 128, dtype=torch.int64))


def test_a_weight_of_a_layer_does_not_change_with_it() -> None:
    scheme = Scheme(4, 64)
    layer = QuantLinear.from_quantized(random_weight(scheme, 25, 128), kernel="reference")
    weight = layer.quantized_weight()
    expected = weight.dequantize()
    layer.load_state_dict(
        QuantLinear.from_quantized(random_weight(scheme, 25, 128, seed=5)).state_dict()
    )
    assert torch.equal(weight.dequantize(), expected)
    assert not torch.equal(layer.dequantize(), expected)


@pytest.mark.parametrize("kernel", ["auto", "cpu"])
@pytest.mark.parametrize(
    ("scheme", "tiled"),
    [
        (Scheme(4, group_size=128), True),  # 576 inputs: the last group holds 64
        (Scheme(3, group_size=1024), True),  # the only group is short
        (Scheme(4, group_size=40), False),
        (Scheme(5, group_size=128), False),
        (Scheme(7), False),
    ],
)
def test_what_kernels_do_not_take_is_dequantized_first_and_says_so(
    kernel: str, scheme: Scheme, tiled: bool
) -> None:
    if resolve_kernel("auto") == "reference":
        pytest.skip("no compiled kernels here")
    weight = random_weight(scheme, 25, 576)
    layer = QuantLinear.from_quantized(weight, kernel=kernel)
    assert (layer.kernel, layer.tiled) == ("cpu", tiled)
    assert layer.way == ("cpu" if tiled else "cpu (dequantizes first)")
    assert f"kernel={layer.way}" in str(layer)
    assert torch.equal(layer.dequantize(), weight.dequantize())
    x = torch.randn(3, 576, generator=torch.Generator().manual_seed(0))
    expected = (x.double() @ weight.dequantize().double().t()).float()
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    held = sum(b.numel() * b.element_size() for b in layer.buffers())
    if not tiled:
        assert held == packed_bytes(scheme, 576, 25)


def test_one_copy_of_the_weight_is_held() -> None:
    if resolve_kernel("auto") == "reference":
        pytest.skip("no compiled kernels here")
    weight = random_weight(Scheme(4, group_size=128), 64, 256)
    sizes = [
        sum(b.numel() * b.element_size() for b in layer.buffers())
        for kernel in ("cpu", "reference")
        for layer in [QuantLinear.from_quantized(weight, kernel=kernel)]
    ]
    assert sizes[0] < 1.02 * sizes[1]  # zero-points take a byte each


def moves_to_cuda(monkeypatch: pytest.MonkeyPatch, missing: str | None) -> None:
    """Let the next .to() look like a move to a GPU, which has kernels or lacks them."""
    if resolve_kernel("auto") == "reference":
        pytest.skip("no compiled kernels here")
    places = iter([torch.device("cpu")])
    monkeypatch.setattr(QuantLinear, "_device", lambda _: next(places, torch.device("cuda:0")))
    monkeypatch.setattr(ops, "why_unavailable", lambda device: missing)


def test_a_moved_layer_takes_the_kernel_of_its_new_device(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantLinear.from_quantized(random_weight(Scheme(4, group_size=32), 25, 128))
    tiles, state = layer.tiles, layer.state_dict()
    moves_to_cuda(monkeypatch, missing=None)
    layer.to(torch.float16)
    assert layer.kernel == "cuda"
    assert layer.tiles is tiles  # the layout is the same on both
    assert torch.equal(layer.state_dict()["qweight"], state["qweight"])


def test_a_moved_layer_without_a_kernel_there_is_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = QuantLinear.from_quantized(random_weight(Scheme(3, group_size=32), 25, 128))
    expected, x = layer.state_dict(), torch.ones(2, 128)
    y = layer(x)
    moves_to_cuda(monkeypatch, missing="no nvcc.")
    layer.to(torch.float16)
    assert layer.kernel == "reference"
    assert not layer.tiled
    assert all(torch.equal(part, expected[name]) for name, part in layer.state_dict().items())
    torch.testing.assert_close(layer(x), y)


def test_a_kernel_asked_for_by_name_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(Scheme(4, group_size=32), 25, 128)
    moves_to_cuda(monkeypatch, missing=None)
    layer = QuantLinear.from_quantized(weight, kernel="cpu")
    with pytest.raises(KernelUnavailable, match="the layer is on cuda:0; move it to cpu"):
        layer.to(torch.float16)


def test_a_layer_that_waits_on_meta_takes_the_kernel_where_it_lands() -> None:
    weight = random_weight(Scheme(4, group_size=32), 25, 128)
    expected = QuantLinear.from_quantized(weight)
    packed = {name: part.to("meta") for name, part in pack(weight).items()}
    layer = QuantLinear(packed, weight.scheme, 128, None, "auto")
    layer.to_empty(device="cpu").load_state_dict(expected.state_dict())
    assert layer.kernel == expected.kernel
    assert layer.tiled == expected.tiled
    assert torch.equal(layer(torch.ones(2, 128)), expected(torch.ones(2, 128)))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_to_a_gpu_and_back(bits: int) -> None:
    reason = ops.why_unavailable(torch.device("cuda"))
    if reason is not None:
        pytest.skip(f"no CUDA kernels: {reason}")
    weight = random_weight(Scheme(bits, group_size=32), 25, 128)
    layer = QuantLinear.from_quantized(weight, torch.ones(25))
    x, state = torch.randn(3, 128), layer.state_dict()
    expected = layer(x)
    layer.to("cuda")
    assert (layer.kernel, layer.tiled) == ("cuda", True)
    y = layer(x.cuda().half()).float().cpu()
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))
    torch.testing.assert_close(layer(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    assert QuantLinear.from_quantized(weight, kernel="auto").to("cuda").kernel == "cuda"
    layer.to("cpu")
    assert layer.kernel == "cpu"
    assert torch.equal(layer(x), expected)
    assert all(torch.equal(part, state[name]) for name, part in layer.state_dict().items())
