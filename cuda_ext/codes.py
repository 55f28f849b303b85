"""Codes between packed words, bytes and values, in compiled code on the CPU where it is built.

Words are little-endian streams of bits, as in cuda_ext.layout, or AWQ's nibbles. Where the library
is missing, or a tensor is on another device, torch does the same, slower: results are equal to the
last bit. Nothing here builds the library, because reading a file should not wait for a compiler.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from cuda_ext import build, layout
from cuda_ext.toolchain import BuildError

ROWS, COLUMNS, NIBBLES = 0, 1, 2  # csrc/cpu/codes.h
_IN_A_WORD = 8  # nibbles

_log = logging.getLogger("cuda_ext")


@cache
def load() -> None:
    """Build and load the library and register fake implementations; raises build.BuildError."""
    build.load()
    for name, fake in (
        ("unpack_words", _fake_unpack),
        ("pack_words", _fake_pack),
        ("decode_codes", _fake_values),
        ("dequantize_words", _fake_values),
    ):
        torch.library.register_fake(f"bitsweep::{name}")(fake)


def compiled(tensor: Tensor) -> bool:
    """Whether compiled code takes the codes, or the words, of this tensor."""
    return tensor.device.type == "cpu" and (build.is_loaded() or _is_built())


@cache
def _is_built() -> bool:
    reason = None
    try:
        if build.find() is None:
            reason = "it is not built yet."
        else:
            load()
    except BuildError as error:
        reason = str(error)
    if reason is not None:
        _log.info("torch unpacks codes, slower than the library and to the same bits: %s", reason)
    return reason is None


@dataclass(frozen=True)
class Words:
    """Codes [rows, columns] of `bits` bits that are packed in words int32, in one of three orders.

    ROWS     words [rows, ceil(columns * bits / 32)], a stream of bits for every row.
    COLUMNS  words [ceil(columns * bits / 32), rows], the same streams transposed: those of GPTQ,
             whose rows here are the outputs of a layer.
    NIBBLES  words [columns, rows / 8] of eight 4-bit codes each; row 8 i + j has nibble places[j]
             of word i, counted from the low end.
    """

    words: Tensor
    bits: int
    columns: int
    order: int = ROWS
    places: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows = (self.words.shape[0], self.words.shape[1], _IN_A_WORD * self.words.shape[1])
        return rows[self.order], self.columns

    def unpack(self) -> Tensor:
        """Return the codes, uint8 [rows, columns]; raises like layout.unpack_codes."""
        if compiled(self.words) and self.words.numel():
            layout.check_words(self.words, self.bits)
            load()
            codes: Tensor = torch.ops.bitsweep.unpack_words(*self._arguments())
            return codes
        if self.order == COLUMNS:
            # Words are transposed, not codes: they are fewer.
            return layout.unpack_codes(self.words.t().contiguous(), self.bits, self.columns)
        if self.order == ROWS:
            return layout.unpack_codes(self.words, self.bits, self.columns)
        nibbles = layout.unpack_codes(self.words, self.bits, self.shape[0])
        found: Tensor = nibbles.unflatten(1, (-1, _IN_A_WORD))[..., list(self.places)].flatten(1)
        return found.t().contiguous()

    def _arguments(self) -> tuple[Tensor, int, int, int, int]:
        places = sum(place << (4 * row) for row, place in enumerate(self.places))
        return self.words.contiguous(), self.bits, self.columns, self.order, places


def unpack_rows(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return codes uint8 [rows, columns] of words int32 [rows, ceil(columns * bits / 32)]."""
    return Words(words, bits, columns).unpack()


def unpack_columns(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return codes uint8 [rows, columns] of words int32 [ceil(columns * bits / 32), rows]."""
    return Words(words, bits, columns, COLUMNS).unpack()


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Return words int32 [rows, ceil(columns * bits / 32)]; the inverse of `unpack_rows`.

    Raises like layout.pack_codes.
    """
    if not compiled(codes):
        return layout.pack_codes(codes, bits)
    return _pack(codes, bits, ROWS)


def pack_columns(codes: Tensor, bits: int) -> Tensor:
    """Return words int32 [ceil(columns * bits / 32), rows]; the inverse of `unpack_columns`.

    Raises like layout.pack_codes.
    """
    if not compiled(codes):
        return layout.pack_codes(codes.t(), bits, dim=0)
    return _pack(codes, bits, COLUMNS)


def decode(
    out: Tensor,
    codes: Tensor | Words,
    scale: Tensor,
    zero: Tensor,
    group_size: int,
    index: Tensor | None = None,
) -> None:
    """Write scale * (code - zero) into out, float32 [rows, columns]; only where `compiled`.

    codes        uint8 [rows, columns], or words, which are unpacked a few rows at a time.
    scale, zero  floating point and uint8 [rows, groups], in any order in memory.
    index        int32 [columns], the group of every column; None: column j is in j // group_size.

    The difference is exact, and the product is rounded once. Raises RuntimeError that names the
    argument that does not fit.
    """
    load()
    grid = (scale.float(), zero, index, group_size)
    if isinstance(codes, Tensor):
        torch.ops.bitsweep.decode_codes(out, codes.contiguous(), *grid)
    else:
        words, bits, _, order, places = codes._arguments()
        torch.ops.bitsweep.dequantize_words(out, words, bits, order, places, *grid)


def _pack(codes: Tensor, bits: int, order: int) -> Tensor:
    layout.check_codes(codes, bits)
    load()
    words: Tensor = torch.ops.bitsweep.pack_words(codes.contiguous(), bits, order)
    return words


def _fake_unpack(words: Tensor, bits: int, columns: int, order: int, places: int) -> Tensor:  # noqa: ARG001
    rows = (words.shape[0], words.shape[1], _IN_A_WORD * words.shape[1])[order]
    return words.new_empty((rows, columns), dtype=torch.uint8)


def _fake_pack(codes: Tensor, bits: int, order: int) -> Tensor:
    held = layout.words_for(codes.shape[1], bits)
    shape = (held, len(codes)) if order == COLUMNS else (len(codes), held)
    return codes.new_empty(shape, dtype=torch.int32)


def _fake_values(*_: object) -> None:
    return None
