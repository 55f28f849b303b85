"""Shapes that real models have: ragged, long and vocabulary-sized.

On the CPU rows of real length with few outputs; on CUDA whole layers of up to 3.6 billion weights.
"""

import pytest
import torch
from torch import Tensor

from cuda_ext import build, packed
from cuda_ext.packed import Packed
from cuda_ext.tiles import LANES, TILE_ROWS, units_for, untile_codes, untile_grid
from tests.oracles.packed_layers import Layer, check_error, check_product, kernel_dtypes, random_x

INPUTS = (768, 1024, 2048, 7168, 11008, 12288, 14336, 18944)
LAYERS = [  # inputs, outputs
    pytest.param(768, 3072, id="opt-125m-fc1"),
    pytest.param(1024, 4096, id="opt-350m-fc1"),
    pytest.param(2048, 8192, id="opt-1.3b-fc1"),
    pytest.param(7168, 28672, id="opt-30b-fc1"),
    pytest.param(12288, 12288, id="opt-175b-q"),
    pytest.param(49152, 12288, id="opt-175b-fc2"),
    pytest.param(14336, 57344, id="bloom-176b-up"),
    pytest.param(11008, 4096, id="llama-7b-down"),
    pytest.param(18944, 3584, id="qwen-7b-down"),
    pytest.param(3584, 18944, id="qwen-7b-up"),
    pytest.param(4096, 32000, id="llama-vocabulary"),
    pytest.param(768, 50272, id="opt-vocabulary"),
    pytest.param(3584, 151936, id="qwen-vocabulary"),
    pytest.param(14336, 250880, id="bloom-vocabulary"),
]


@pytest.mark.parametrize("inputs", INPUTS)
def test_rows_of_real_length(device: str, inputs: int) -> None:
    for bits in (2, 3, 4):
        layer = Layer(bits, inputs, 3, 128, device)
        for dtype in kernel_dtypes(device):
            check_error(layer, random_x(1, inputs, dtype, device))


def random_tiles(bits: int, inputs: int, outputs: int, group: int, device: str) -> Packed:
    """A layer of random codes, made on the device in the kernel layout, padding rows and all."""
    generator = torch.Generator(device).manual_seed(bits)
    tiles = -(-outputs // TILE_ROWS)
    shape = (tiles, units_for(inputs, bits), TILE_ROWS, LANES)
    grid = (tiles, -(-inputs // group), TILE_ROWS)
    made = {"device": device, "generator": generator}
    words = torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32, **made)
    scales = (torch.rand(grid, **made) * 0.01 + 0.001).half()
    zeros = torch.randint(0, 2**bits, grid, dtype=torch.uint8, **made)
    return Packed(words, scales, zeros, None)


def exact_rows(held: Packed, chosen: Tensor, bits: int, inputs: int, group: int) -> Tensor:
    """The float32 weight of some tiles, from their bytes by plain PyTorch."""
    rows = len(chosen) * TILE_ROWS
    codes = untile_codes(held.tiles[chosen], bits, inputs, rows).float()
    assert held.zeros is not None
    scales, zeros = (untile_grid(part[chosen], rows).float() for part in (held.scales, held.zeros))
    column = torch.arange(inputs, device=codes.device) // group
    return scales.t()[:, column] * (codes - zeros.t()[:, column])


def check_whole_layer(device: str, bits: int, inputs: int, outputs: int) -> None:
    """Sampled tiles against their bytes in float64, and every output against torch's product."""
    group = 128
    held = random_tiles(bits, inputs, outputs, group, device)
    tiles = held.tiles.shape[0]
    inner = torch.randint(0, tiles, (30,), generator=torch.Generator().manual_seed(0))
    chosen = torch.cat([torch.tensor([0, tiles - 1]), inner]).unique().to(device)
    exact = exact_rows(held, chosen, bits, inputs, group)
    whole = packed.dequantize(
        held, bits=bits, in_features=inputs, out_features=outputs, group_size=group,
        dtype=torch.float16,
    )  # fmt: skip
    rows = (chosen[:, None] * TILE_ROWS + torch.arange(TILE_ROWS, device=device)).flatten()
    inside = rows < outputs
    rows, exact = rows[inside], exact[inside]
    assert torch.equal(whole[rows], exact.half())
    for batch in (1, 16, 64):
        x = random_x(batch, inputs, torch.float16, device)
        y = packed.linear(x, held, bits=bits, out_features=outputs, group_size=group)
        check_product(y[:, rows], x, exact)
        plain = x @ whole.t()
        assert float((y.float() - plain.float()).abs().max()) <= 4e-3 * float(plain.abs().max())


def test_a_whole_layer_on_the_cpu(library: build.Library) -> None:
    check_whole_layer("cpu", 3, 2048, 1030)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("inputs", "outputs"), LAYERS)
def test_whole_layers(cuda: str, inputs: int, outputs: int, bits: int) -> None:
    check_whole_layer(cuda, bits, inputs, outputs)
