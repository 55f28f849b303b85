"""The kernel layout: a bijection of codes, as shared/layout.h draws it, that wastes little."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_ext.layout import BIT_WIDTHS
from cuda_ext.tiles import (
    can_tile,
    tile_codes,
    tile_grid,
    units_for,
    untile_codes,
    untile_grid,
)

BITS = (2, 3, 4, 8)


@given(
    bits=st.sampled_from(BITS),
    outputs=st.integers(1, 20),
    inputs=st.integers(1, 1200),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_untile_is_the_inverse_of_tile(bits: int, outputs: int, inputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8, generator=generator)
    tiles = tile_codes(codes, bits)
    assert tiles.shape == (-(-outputs // 8), units_for(inputs, bits), 8, 16)
    assert torch.equal(untile_codes(tiles, bits, inputs, outputs), codes)


@pytest.mark.parametrize("bits", BITS)
def test_every_bit_of_a_whole_chunk_is_used_once(bits: int) -> None:
    codes = torch.full((8, 512), 2**bits - 1, dtype=torch.uint8)
    assert bool((tile_codes(codes, bits) == -1).all())


@pytest.mark.parametrize(
    ("bits", "k", "unit", "lane", "low"),
    [
        (4, 0, 0, 0, 0),
        (4, 1, 0, 0, 16),  # the odd neighbour: 16 bits higher in the same word
        (4, 2, 0, 1, 0),
        (4, 33, 0, 0, 20),  # block 1
        (4, 128, 1, 0, 0),  # a chunk of 4 blocks later
        (2, 225, 0, 0, 30),  # block 7
        (8, 63, 0, 15, 24),
        (3, 32 * 5 + 4, 1, 2, 0),  # block 5 opens the second unit
        (3, 32 * 14 + 1, 2, 0, 28),
    ],
)
def test_where_a_code_lies(bits: int, k: int, unit: int, lane: int, low: int) -> None:
    codes = torch.zeros(9, 512, dtype=torch.uint8)
    codes[8, k] = 1
    found = tile_codes(codes, bits).nonzero().tolist()
    assert found == [[1, unit, 0, lane]]
    assert int(tile_codes(codes, bits)[1, unit, 0, lane]) & 0xFFFFFFFF == 1 << low


def test_the_last_block_of_three_bits_takes_the_tops_of_three_units() -> None:
    codes = torch.zeros(1, 512, dtype=torch.uint8)
    codes[0, 480:482] = torch.tensor([0b101, 0b010])
    words = tile_codes(codes, 3)[0, :, 0, 0]
    assert [word & 0xFFFFFFFF for word in words.tolist()] == [1 << 15, 1 << 31, 1 << 15]


@pytest.mark.parametrize("inputs", [768, 1024, 2048, 7168, 12288, 14336, 11008, 18944])
@pytest.mark.parametrize("bits", BITS)
def test_padding_of_real_rows(bits: int, inputs: int) -> None:
    stored = units_for(inputs, bits) * 64
    assert stored * 8 <= 1.12 * inputs * bits


def test_grids() -> None:
    grid = torch.arange(3 * 11).view(3, 11)
    tiled = tile_grid(grid)
    assert tiled.shape == (2, 3, 8)
    assert int(tiled[1, 2, 1]) == int(grid[2, 9])
    assert torch.equal(untile_grid(tiled, 11), grid)


def test_which_groups_kernels_take() -> None:
    assert can_tile(4, 37, None)
    assert can_tile(3, 256, 32)
    assert can_tile(2, 256, 96)  # a short last group
    assert can_tile(8, 8, 8)
    assert not can_tile(4, 256, 16)
    assert not can_tile(4, 256, 32, torch.zeros(256))
    assert [bits for bits in BIT_WIDTHS if can_tile(bits, 256, 32)] == [2, 3, 4, 8]
