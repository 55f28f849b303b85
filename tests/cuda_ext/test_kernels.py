"""The compiled kernels against float64 products of the weight that the packed bytes stand for.

Every test takes the device: on the CPU each instruction set, and CUDA.
"""

import pytest
import torch

from cuda_ext import packed
from cuda_ext.tiles import tile_codes
from tests.oracles.packed_layers import (
    BATCHES,
    BITS,
    Layer,
    check_error,
    kernel_dtypes,
    poison,
    random_x,
)

# Above the rows that each device multiplies from the codes, too.
ALL_BATCHES = (*BATCHES, 192, 193, 513)
# Ragged outputs; inputs of whole chunks, of parts of one, and of no whole block.
SHAPES = [
    pytest.param(1024, 24, 128, id="1024x24g128"),
    pytest.param(768, 9, None, id="768x9"),
    pytest.param(1056, 17, 32, id="1056x17g32"),
    pytest.param(544, 8, 96, id="544x8g96"),
    pytest.param(2048, 5, 1024, id="2048x5g1024"),
    pytest.param(200, 11, 64, id="200x11g64-last-group-is-short"),
    pytest.param(576, 16, 128, id="576x16g128-last-group-is-short"),
    pytest.param(37, 13, None, id="37x13"),
    pytest.param(1024, 136, 256, id="1024x136g256"),
]


@pytest.mark.parametrize(("inputs", "outputs", "group"), SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_product_and_exactness(
    device: str, bits: int, inputs: int, outputs: int, group: int | None
) -> None:
    layer = Layer(bits, inputs, outputs, group, device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(layer.dequantize(dtype), layer.weight.to(dtype))
    # One-hot rows pick out inputs; products with 0 and sums of 0 are exact.
    picked = torch.randperm(inputs, generator=torch.Generator().manual_seed(0))[:64]
    bias = torch.linspace(-1, 1, outputs, device=device)
    for dtype in kernel_dtypes(device):
        one_hot = torch.eye(inputs, dtype=dtype)[picked].to(device)
        expected = layer.weight.t()[picked.to(device)].to(dtype)
        assert torch.equal(layer.linear(one_hot), expected)
        assert torch.equal(layer.linear(one_hot[:1]), expected[:1])
        for batch in (1, 6):
            check_error(layer, random_x(batch, inputs, dtype, device), bias)


@pytest.mark.parametrize("group", [None, 32, 128])
def test_ternary(device: str, group: int | None) -> None:
    layer = Layer(2, 544, 19, group, device, ternary=True)
    assert torch.equal(layer.dequantize(), layer.weight)
    dtype = kernel_dtypes(device)[0]
    one_hot = torch.eye(544, dtype=dtype, device=device)[:64]
    assert torch.equal(layer.linear(one_hot), layer.weight.t()[:64].to(dtype))
    check_error(layer, random_x(5, 544, dtype, device), torch.ones(19, device=device))


@pytest.mark.parametrize("batch", ALL_BATCHES)
def test_batches(device: str, batch: int) -> None:
    bias = torch.ones(21, device=device)
    layers = [Layer(3, 640, 21, 128, device)]
    if device == "cuda":  # the number of bits chooses the kernel there
        layers += [Layer(bits, 640, 21, 128, device) for bits in (2, 4, 8)]
    for layer in layers:
        for dtype in kernel_dtypes(device):
            check_error(layer, random_x(batch, 640, dtype, device))
        check_error(layer, random_x(batch, 640, torch.bfloat16, device), bias.bfloat16())


def test_rows_do_not_depend_on_their_neighbours(device: str) -> None:
    """On the CPU the sum of a row is the same in any batch of two or more, and for one row within
    rounding (AVX2 and AVX-512 sum whole numbers there); on CUDA in any batch of that size."""
    layer = Layer(4, 640, 21, 128, device)
    x = random_x(64, 640, kernel_dtypes(device)[0], device)
    together = layer.linear(x)
    if device == "cpu":
        for rows in (slice(3, 5), slice(7, 30)):
            assert torch.equal(layer.linear(x[rows].contiguous()), together[rows])
        bound = 0.0 if packed.cpu_isa() == "portable" else 1e-4
        torch.testing.assert_close(layer.linear(x[:1]), together[:1], rtol=0, atol=bound)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(layer.linear(x[shuffled]), together[shuffled])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_never_dequantized_where_torch_is_slow_with_them(
    device: str, dtype: torch.dtype
) -> None:
    if device != "cpu" or packed.cpu_isa() != "avx2":
        pytest.skip("a rule of AVX2")
    layer = Layer(4, 640, 21, 128, device)
    x = random_x(600, 640, dtype, device)
    parts = [layer.linear(part.contiguous()) for part in x.split(150)]
    assert torch.equal(layer.linear(x), torch.cat(parts))  # the kernels' sums, at every batch
    check_error(layer, x)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("end", ["zero", "maximum"])
def test_extreme_codes(device: str, bits: int, end: str) -> None:
    layer = Layer(bits, 544, 9, 32, device, fill=0 if end == "zero" else 2**bits - 1)
    assert torch.equal(layer.dequantize(), layer.weight)
    for batch in (1, 3, 17):
        check_error(layer, random_x(batch, 544, kernel_dtypes(device)[0], device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_storage_of_scales(device: str, dtype: torch.dtype) -> None:
    layer = Layer(4, 256, 9, 64, device, scale_dtype=dtype)
    assert torch.equal(layer.dequantize(), layer.weight)
    for taken in kernel_dtypes(device):
        check_error(layer, random_x(2, 256, taken, device))


def test_dtypes_without_a_packed_kernel(device: str) -> None:
    """float64, and float32 on CUDA, are multiplied by the dequantized weight."""
    layer = Layer(3, 256, 9, 64, device)
    for dtype in (torch.float32, torch.float64):
        check_error(layer, random_x(2, 256, dtype, device), torch.ones(9, device=device))


def test_outputs_and_workspaces_are_written_whole(device: str) -> None:
    """Memory that the output takes over is full of NaN; padding rows must not read past the end."""
    dtype = kernel_dtypes(device)[0]
    for bits, inputs, batch in ((4, 256, 5), (3, 4096, 1), (2, 4096, 33)):
        layer = Layer(bits, inputs, 9, 64, device)
        x = random_x(batch, inputs, dtype, device)
        expected = layer.linear(x)
        for _ in range(5):
            poison(device)
            assert torch.equal(layer.linear(x), expected)
        assert not bool(layer.linear(torch.zeros_like(x)).any())
        poison(device)
        assert torch.equal(layer.dequantize(), layer.weight)
        poison(device)
        again = torch.ops.bitsweep.repack(layer.qweight, bits, inputs)
        assert torch.equal(again, layer.packed.tiles)


def test_inputs_of_other_strides_and_dimensions(device: str) -> None:
    layer = Layer(4, 256, 9, 64, device)
    x = random_x(6, 512, kernel_dtypes(device)[0], device)[:, ::2]
    whole = layer.linear(x.contiguous())
    assert torch.equal(layer.linear(x), whole)
    assert torch.equal(layer.linear(x.reshape(2, 3, 256)), whole.view(2, 3, 9))
    assert layer.linear(x[:0]).shape == (0, 9)
    assert layer.linear(x[0]).shape == (9,)
    # Rows that begin at an address which no wide load takes.
    shifted = torch.empty(6 * 256 + 1, dtype=x.dtype, device=device)[1:].view(6, 256).copy_(x)
    assert torch.equal(layer.linear(shifted), whole)


@pytest.mark.parametrize("bits", BITS)
def test_repack_makes_the_tiles_of_the_codes(device: str, bits: int) -> None:
    for inputs, outputs in ((37, 5), (544, 16), (1000, 33)):
        layer = Layer(bits, inputs, outputs, None, device)
        assert torch.equal(layer.packed.tiles.cpu(), tile_codes(layer.codes.t(), bits))
        back = packed.unpack(layer.packed, bits=bits, in_features=inputs, out_features=outputs)
        assert torch.equal(back["qweight"], layer.qweight)
        assert torch.equal(back["scales"], layer.scales)
        assert torch.equal(back["qzeros"], layer.qzeros)


def test_repeats_are_bit_identical(device: str) -> None:
    """1,000 times, on the CPU for any number of threads."""
    layer = Layer(3, 1056, 40, 32, device)
    x = random_x(3, 1056, kernel_dtypes(device)[0], device)
    threads = torch.get_num_threads()
    first = layer.linear(x)
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            for _ in range(250):
                assert torch.equal(layer.linear(x), first)
    finally:
        torch.set_num_threads(threads)
