"""The CUDA kernels, emulated on the CPU, against float64 products of what the codes stand for.

Everything but speed and the hardware itself: arithmetic, indexing, staging, splitting, and the
order of threads. test_kernels.py runs the compiled kernels where there is a GPU.
"""

import shutil

import pytest
import torch
from torch import Tensor

from cuda_ext.layout import pack_codes
from cuda_ext.tiles import tile_codes
from tests.oracles import emulated_cuda as emulated
from tests.oracles.emulated_cuda import A10, A100, H200, Device, Layer, Packed, random_layer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ for the emulator")

WIDTHS = ("2", "3", "4", "8", "ternary")
DTYPES = (torch.float16, torch.bfloat16)
BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64)
# A machine so small that thread blocks run through many row blocks, or share each.
SMALL = Device(3, 227 << 10, 228 << 10)
# (inputs, outputs, group): whole and unfinished chunks, blocks, tiles and groups.
SHAPES = [
    pytest.param(544, 24, 32, id="544x24g32"),
    pytest.param(512, 9, 64, id="512x9g64"),
    pytest.param(576, 17, 96, id="576x17g96"),
    pytest.param(640, 40, 128, id="640x40g128"),
    pytest.param(1024, 8, 256, id="1024x8g256"),
    pytest.param(2048, 5, 1024, id="2048x5g1024"),
    pytest.param(768, 33, None, id="768x33"),
    pytest.param(200, 11, 64, id="200x11g64-short-last-group"),
    pytest.param(576, 9, 128, id="576x9g128-short-last-group"),
    pytest.param(37, 13, None, id="37x13"),
]


def layer_of(
    width: str, inputs: int, outputs: int, group: int | None, scale_dtype: torch.dtype = torch.half
) -> Layer:
    ternary = width == "ternary"
    bits = 2 if ternary else int(width)
    return random_layer(bits, inputs, outputs, group, ternary=ternary, scale_dtype=scale_dtype)


def random_x(batch: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, inputs, generator=torch.Generator().manual_seed(batch)).to(dtype)


def check_error(layer: Layer, y: Tensor, x: Tensor, bias: Tensor | None = None) -> None:
    """At most twice the error of torch's product of the dequantized weight in the dtype of x."""
    weight = layer.exact()
    exact, plain = x.double() @ weight.t(), x @ weight.to(x.dtype).t()
    if bias is not None:
        exact, plain = exact + bias.double(), plain + bias.to(x.dtype)
    error, allowed = (y.double() - exact).abs(), (plain.double() - exact).abs()
    # Short sums of a few outputs may hit an exact result by luck: one rounding is always allowed.
    eps = torch.finfo(x.dtype).eps * float(exact.abs().max())
    assert not bool(y.isnan().any())
    assert float(error.max()) <= 2 * float(allowed.max()) + eps
    assert float(error.mean()) <= 2 * float(allowed.mean()) + eps / 2


@pytest.mark.parametrize(("inputs", "outputs", "group"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_shapes(
    width: str, dtype: torch.dtype, inputs: int, outputs: int, group: int | None
) -> None:
    emulated.use_device(H200)
    layer = layer_of(width, inputs, outputs, group)
    held = Packed(layer)
    for batch in (1, 17):
        x = random_x(batch, inputs, dtype)
        check_error(layer, held.linear(x), x)
    # One-hot rows pick out inputs: products with 0 and sums of 0 are exact, so this is the weight.
    picked = torch.randperm(inputs, generator=torch.Generator().manual_seed(0))[:40]
    rows = held.linear(torch.eye(inputs, dtype=dtype)[picked])
    assert torch.equal(rows, layer.exact().float().to(dtype).t()[picked])
    for kind in (torch.float32, *DTYPES):
        assert torch.equal(held.dequantize(kind), layer.exact().float().to(kind))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("width", WIDTHS)
def test_batches(width: str, batch: int) -> None:
    emulated.use_device(H200)
    for group, dtype in ((128, torch.float16), (32, torch.bfloat16)):
        layer = layer_of(width, 640, 21, group)
        x = random_x(batch, 640, dtype)
        bias = torch.linspace(-1, 1, 21).to(dtype)
        check_error(layer, Packed(layer).linear(x, bias), x, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_identity_gives_every_weight(width: str, dtype: torch.dtype) -> None:
    for group, scale_dtype in ((32, torch.float32), (128, torch.float32), (None, torch.bfloat16)):
        layer = layer_of(width, 256, 70, group, scale_dtype)
        expected = layer.exact().float().to(dtype).t()
        for device in (H200, SMALL):
            emulated.use_device(device)
            assert torch.equal(Packed(layer).linear(torch.eye(256, dtype=dtype)), expected)


@pytest.mark.parametrize("width", ["2", "3", "4", "8"])
@pytest.mark.parametrize("zero", ["lowest", "highest"])
@pytest.mark.parametrize("code", ["lowest", "highest"])
def test_extreme_codes_and_zeros(width: str, code: str, zero: str) -> None:
    emulated.use_device(H200)
    top = 2 ** int(width) - 1
    layer = layer_of(width, 544, 9, 32)
    assert layer.zeros is not None
    layer.codes.fill_(0 if code == "lowest" else top)
    layer.zeros.fill_(0 if zero == "lowest" else top)
    for dtype in DTYPES:
        x = random_x(3, 544, dtype)
        check_error(layer, Packed(layer).linear(x), x)
        one_hot = Packed(layer).linear(torch.eye(544, dtype=dtype)[:8])
        assert torch.equal(one_hot, layer.exact().float().to(dtype).t()[:8])


@pytest.mark.parametrize("code", [0, 1, 2])
def test_extreme_ternary_codes(code: int) -> None:
    emulated.use_device(H200)
    layer = layer_of("ternary", 544, 9, 32)
    layer.codes.fill_(code)
    x = random_x(3, 544, torch.float16)
    check_error(layer, Packed(layer).linear(x), x)


@pytest.mark.parametrize("device", [SMALL, A10, A100], ids=["small", "a10", "a100"])
@pytest.mark.parametrize("width", WIDTHS)
def test_devices_cut_the_work_differently(width: str, device: Device) -> None:
    emulated.use_device(device)
    layer = layer_of(width, 2112, 200, 64)
    for batch in (1, 8, 20, 64):
        x = random_x(batch, 2112, torch.float16)
        check_error(layer, Packed(layer).linear(x), x)


@pytest.mark.parametrize("multiprocessors", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("batch", [1, 4, 12])
def test_partial_sums_cover_every_way_to_share_steps(batch: int, multiprocessors: int) -> None:
    """Thread blocks that begin and end inside row blocks, have whole ones, or a part of one."""
    emulated.use_device(Device(multiprocessors, 99 << 10, 100 << 10))
    layer = layer_of("4", 12288, 96, 128)
    held = Packed(layer)
    plan = held.plan(batch)
    assert plan.k_steps > 1
    x = random_x(batch, 12288, torch.float16)
    check_error(layer, held.linear(x), x)
    assert emulated.launches() == 1 + plan.split


def test_split_and_whole_plans_are_both_met() -> None:
    layer = Packed(layer_of("4", 12288, 96, 128))
    found = set()
    for multiprocessors in (1, 3, 132):
        emulated.use_device(Device(multiprocessors, 227 << 10, 228 << 10))
        for batch in (1, 16):
            plan = layer.plan(batch)
            found.add((bool(plan.split), plan.blocks > plan.row_blocks))
    assert found >= {(False, False), (True, True)}


@pytest.mark.parametrize("width", WIDTHS)
def test_no_result_depends_on_the_order_of_threads(width: str) -> None:
    """A missing barrier shows as NaN of a stage overwritten or not yet there, in some order."""
    layer = layer_of(width, 4160, 72, 32)
    for batch, device in ((1, H200), (7, SMALL), (20, A10)):
        x = random_x(batch, 4160, torch.float16)
        emulated.use_device(device)
        first = Packed(layer).linear(x)
        check_error(layer, first, x)
        for order in (1, 2):
            emulated.use_device(device, order)
            assert torch.equal(Packed(layer).linear(x), first)


def test_tokens_do_not_touch_each_other() -> None:
    emulated.use_device(H200)
    layer = layer_of("4", 640, 21, 128)
    for batch in (3, 12, 30, 50):
        x = random_x(batch, 640, torch.float16)
        expected = Packed(layer).linear(x)
        x[1], x[2, 5] = torch.nan, torch.inf
        y = Packed(layer).linear(x)
        assert bool(y[1:3].isnan().any(dim=1).all() | y[2].isinf().any())
        y[1:3], expected[1:3] = 0, 0
        assert torch.equal(y, expected)


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("inputs", [256, 250, 251])
def test_any_address_of_x(inputs: int, shift: int) -> None:
    emulated.use_device(H200)
    layer = layer_of("3", inputs, 12, None)
    for batch in (2, 9):
        x = random_x(batch, inputs, torch.bfloat16)
        y = Packed(layer).linear(x, shift=shift)
        check_error(layer, y, x)
        assert torch.equal(y, Packed(layer).linear(x))


@pytest.mark.parametrize("bias_dtype", [torch.float32, *DTYPES])
def test_bias_of_any_type(bias_dtype: torch.dtype) -> None:
    layer = layer_of("4", 2112, 40, 64)
    bias = torch.linspace(-9, 9, 40).to(bias_dtype)
    x = random_x(3, 2112, torch.float16)
    for device in (SMALL, H200):
        emulated.use_device(device)
        check_error(layer, Packed(layer).linear(x, bias), x, bias)


@pytest.mark.parametrize("width", ["2", "3", "4", "8"])
def test_repack_makes_the_tiles_of_the_codes(width: str) -> None:
    bits = int(width)
    emulated.use_device(H200)
    for inputs, outputs in ((37, 5), (544, 16), (1000, 33)):
        codes = random_layer(bits, inputs, outputs, None).codes
        words = pack_codes(codes.t(), bits, dim=0)
        assert torch.equal(emulated.repack(words, bits, inputs), tile_codes(codes, bits))
