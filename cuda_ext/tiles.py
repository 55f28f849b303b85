"""The kernel layout in plain PyTorch: convert codes and grids to tiles and back.

csrc/shared/layout.h defines where each code is stored, and why. The operator bitsweep::repack makes
the same tiles from GPTQ's words faster; these functions are its oracle in the tests, and the
conversion back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# Bit widths that kernels support; cuda_ext.layout packs more.
KERNEL_BITS = (2, 3, 4, 8)
LANES = 16
TILE_ROWS = 8
BLOCK = 32


def can_tile(
    bits: int, in_features: int, group_size: int | None, g_idx: Tensor | None = None
) -> bool:
    """Whether kernels support a layer: 2, 3, 4 or 8 bits, and groups of adjacent columns.

    A group must be the whole row or a multiple of 32 inputs; the last group may be short.
    """
    if bits not in KERNEL_BITS or g_idx is not None:
        return False
    return group_size is None or group_size >= in_features or group_size % BLOCK == 0


def chunk_shape(bits: int) -> tuple[int, int]:
    """Return (blocks of 32 inputs, units of 16 words) of one chunk of a row."""
    if bits not in KERNEL_BITS:
        raise ValueError(f"bits={bits} is not supported by the kernels; choose 2, 3, 4 or 8.")
    return (16, 3) if bits == 3 else (16 // bits, 1)


def units_for(in_features: int, bits: int) -> int:
    """Return the 64-byte units of one row; an incomplete 3-bit chunk may omit some."""
    blocks, units = chunk_shape(bits)
    whole, rest = divmod(-(-in_features // BLOCK), blocks)
    return whole * units + (min(-(-rest // 5), 3) if bits == 3 else int(rest > 0))


def tile_codes(codes: Tensor, bits: int) -> Tensor:
    """Convert uint8 codes [out, in] to int32 tiles [ceil(out / 8), units, 8, 16]."""
    outputs, inputs = codes.shape
    blocks, units = chunk_shape(bits)
    chunks = -(-inputs // (BLOCK * blocks))
    rows = -(-outputs // TILE_ROWS) * TILE_ROWS
    padded = pad(codes.int(), (0, chunks * blocks * BLOCK - inputs, 0, rows - outputs))
    # [tile, row, chunk, block, lane, odd] -> [tile, chunk, row, lane] for each block and parity.
    padded = padded.reshape(-1, TILE_ROWS, chunks, blocks, LANES, 2).permute(0, 2, 3, 5, 1, 4)
    words = codes.new_zeros((rows // TILE_ROWS, chunks, units, TILE_ROWS, LANES), dtype=torch.int32)
    for block in range(blocks):
        for odd in range(2):
            for code_bit, width, unit, low in _places(bits, block, odd):
                part = (padded[:, :, block, odd] >> code_bit) & (2**width - 1)
                words[:, :, unit] |= part << low
    flat = words.flatten(1, 2)
    return flat[:, : units_for(inputs, bits)].contiguous()


def untile_codes(tiles: Tensor, bits: int, in_features: int, out_features: int) -> Tensor:
    """Convert tiles to uint8 codes [out, in]; the inverse of `tile_codes`."""
    blocks, units = chunk_shape(bits)
    chunks = -(-in_features // (BLOCK * blocks))
    missing = chunks * units - tiles.shape[1]
    words = pad(tiles, (0, 0, 0, 0, 0, missing)).view(-1, chunks, units, TILE_ROWS, LANES)
    shape = (tiles.shape[0], TILE_ROWS, chunks, blocks, LANES, 2)
    codes = torch.zeros(shape, dtype=torch.uint8, device=tiles.device)
    for block in range(blocks):
        for odd in range(2):
            for code_bit, width, unit, low in _places(bits, block, odd):
                part = (words[:, :, unit] >> low) & (2**width - 1)
                codes[:, :, :, block, :, odd] |= (part << code_bit).to(torch.uint8).transpose(1, 2)
    rows = codes.view(-1, chunks * blocks * BLOCK)
    return rows[:out_features, :in_features].contiguous()


def tile_grid(grid: Tensor) -> Tensor:
    """Convert scales or zeros [groups, out] to [ceil(out / 8), groups, 8], by tile."""
    groups, outputs = grid.shape
    padded = pad(grid, (0, -outputs % TILE_ROWS))
    return padded.view(groups, -1, TILE_ROWS).transpose(0, 1).contiguous()


def untile_grid(tiled: Tensor, out_features: int) -> Tensor:
    """Convert back to [groups, out]; the inverse of `tile_grid`."""
    groups = tiled.shape[1]
    return tiled.transpose(0, 1).reshape(groups, -1)[:, :out_features].contiguous()


def _places(bits: int, block: int, odd: int) -> list[tuple[int, int, int, int]]:
    """Return the position of a code: (bit of the code, bits, unit, bit of the word) per piece."""
    high = 16 * odd
    if bits != 3:
        return [(0, bits, 0, bits * block + high)]
    if block == 15:
        return [(bit, 1, bit, 15 + high) for bit in range(3)]
    return [(0, 3, block // 5, 3 * (block % 5) + high)]
