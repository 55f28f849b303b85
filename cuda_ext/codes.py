"""Codes between packed words, bytes and values, in compiled code on the CPU where it is built.

Words are little-endian streams of bits, as in cuda_ext.layout, or AWQ's nibbles. Where the library
is missing, or a tensor is on another device, torch does the same, slower: results are equal to the
last bit. Nothing here builds the library, because reading a file should not wait for a compiler.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from cuda_ext import build, layout
from cuda_ext.toolchain import BuildError

_ROWS, _COLUMNS, _NIBBLES = 0, 1, 2  # csrc/cpu/codes.h
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


def unpack_rows(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return codes uint8 [rows, columns] of words int32 [rows, ceil(columns * bits / 32)]."""
    if not compiled(words):
        return layout.unpack_codes(words, bits, columns)
    return _unpack(words, bits, columns, _ROWS)


def unpack_columns(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return codes uint8 [rows, columns] of words int32 [ceil(columns * bits / 32), rows].

    These are the words of GPTQ, whose rows here are the outputs of a layer.
    """
    if not compiled(words):
        # Words are transposed, not codes: they are fewer.
        return layout.unpack_codes(words.t().contiguous(), bits, columns)
    return _unpack(words, bits, columns, _COLUMNS)


def unpack_nibbles(words: Tensor, places: tuple[int, ...]) -> Tensor:
    """Return codes uint8 [rows, columns] of words int32 [columns, rows / 8] of eight 4-bit codes.

    Row 8 i + j has nibble places[j] of word i, counted from the low end.
    """
    if not compiled(words):
        nibbles = layout.unpack_codes(words, 4, _IN_A_WORD * words.shape[1])
        found = nibbles.unflatten(1, (-1, _IN_A_WORD))[..., list(places)].flatten(1)
        return found.t().contiguous()
    load()
    packed = sum(place << (4 * row) for row, place in enumerate(places))
    codes: Tensor = torch.ops.bitsweep.unpack_words(
        words.contiguous(), 4, len(words), _NIBBLES, packed
    )
    return codes


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Return words int32 [rows, ceil(columns * bits / 32)]; the inverse of `unpack_rows`.

    Raises like layout.pack_codes.
    """
    if not compiled(codes):
        return layout.pack_codes(codes, bits)
    return _pack(codes, bits, _ROWS)


def pack_columns(codes: Tensor, bits: int) -> Tensor:
    """Return words int32 [ceil(columns * bits / 32), rows]; the inverse of `unpack_columns`.

    Raises like layout.pack_codes.
    """
    if not compiled(codes):
        return layout.pack_codes(codes.t(), bits, dim=0)
    return _pack(codes, bits, _COLUMNS)


def decode(
    out: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_size: int,
    index: Tensor | None = None,
) -> None:
    """Write scale * (code - zero) into out, float32 [rows, columns]; only where `compiled`.

    codes        uint8 [rows, columns].
    scale, zero  floating point and uint8 [rows, groups].
    index        int32 [columns], the group of every column; None: column j is in j // group_size.

    The difference is exact, and the product is rounded once. Raises RuntimeError that names the
    argument that does not fit.
    """
    load()
    torch.ops.bitsweep.decode_codes(
        out, codes.contiguous(), scale.float().contiguous(), zero.contiguous(), index, group_size
    )


def _unpack(words: Tensor, bits: int, columns: int, order: int) -> Tensor:
    if words.dtype != torch.int32:
        raise TypeError(f"unpack_codes: words are {words.dtype}; pass torch.int32.")
    load()
    codes: Tensor = torch.ops.bitsweep.unpack_words(words.contiguous(), bits, columns, order, 0)
    return codes


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
    shape = (held, len(codes)) if order == _COLUMNS else (len(codes), held)
    return codes.new_empty(shape, dtype=torch.int32)


def _fake_values(*_: object) -> None:
    return None
