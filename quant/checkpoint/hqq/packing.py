"""HQQ's packed codes: a matrix is cut into equal parts by rows, which lie in the bits of one word.

The first part has the highest bits that are used. The last word of 3-bit codes is filled up with
rows of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """A packing: bits of a code, codes of a word, and the type of a word."""

    bits: int
    codes: int
    word: torch.dtype

    def words(self, rows: int) -> int:
        """Return the rows of words that hold `rows` rows of codes."""
        return -(-rows // self.codes)


PACKINGS = {
    "8bit_u8": Packing(8, 1, torch.uint8),
    "4bit_u8": Packing(4, 2, torch.uint8),
    "3bit_32": Packing(3, 10, torch.int32),
    "2bit_u8": Packing(2, 4, torch.uint8),
    "1bit_u8": Packing(1, 8, torch.uint8),
}


def unpack_rows(words: Tensor, packing: Packing, rows: int) -> Tensor:
    """Return the codes, uint8 [rows, columns], of words [packing.words(rows), columns]."""
    shifts = range(packing.bits * (packing.codes - 1), -1, -packing.bits)
    mask = (1 << packing.bits) - 1
    return torch.cat([(words >> shift & mask).to(torch.uint8) for shift in shifts])[:rows]
