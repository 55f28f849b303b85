"""Pack codes as a little-endian bit stream in int32 words, exactly as GPTQ stores them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD_BITS = 32
BIT_WIDTHS = (2, 3, 4, 5, 6, 7, 8)
# Codes unpacked at a time: temporaries of a chunk stay in the cache and in the allocator's heap;
# those of a whole layer would be mapped, faulted in and unmapped again in every call.
_CHUNK = 1 << 17
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
# Codes packed at a time. They are often read across the rows of the matrix, and a larger chunk
# reads longer pieces. Measured: the fastest for matrices of 1024 to 12288 rows.
_PACKED_AT_ONCE = 1 << 20


def words_for(codes: int, bits: int) -> int:
    """Return the count of int32 words for `codes` codes of `bits` bits: ceil(codes * bits / 32)."""
    return -(-codes * bits // WORD_BITS)


def pack_codes(codes: Tensor, bits: int, *, dim: int = -1) -> Tensor:
    """Pack uint8 codes [..., n, ...] into int32 words [..., ceil(n * bits / 32), ...] along `dim`.

    Code i has bits i * bits .. (i + 1) * bits - 1 of the stream; bit b of the stream is bit b mod
    32 of word b // 32, so a code of 3, 5, 6 or 7 bits may straddle two words. The last word is
    padded with zero bits. With dim=0 on codes [in, out] the result is the qweight of a GPTQ
    checkpoint, with dim=-1 on zeros [groups, out] its qzeros.

    Raises TypeError unless codes are uint8, ValueError for a bit width outside 2 to 8 or a code
    that does not fit.
    """
    period, stride = _period(bits)
    check_codes(codes, bits)
    lead, n, trail = _split(codes, dim)
    before, after = math.prod(lead), math.prod(trail)
    blocks = -(-n // period)
    flat = codes.reshape(before, n, after)
    words = torch.zeros(before, blocks, stride, after, dtype=torch.int32, device=codes.device)
    at_once = _PACKED_AT_ONCE if codes.device.type == "cpu" else codes.numel()
    step = max(1, at_once // max(1, before * period * after))
    for first in range(0, blocks, step):
        some = words[:, first : first + step]
        part = flat[:, first * period : (first + step) * period]
        part = pad(part, (0, 0, 0, some.shape[1] * period - part.shape[1]))
        _add_codes(some, part.reshape(before, some.shape[1], period, after), bits)
    kept = words.view(before, blocks * stride, after)[:, : words_for(n, bits)]
    return kept.reshape(*lead, kept.shape[1], *trail).contiguous()


def check_codes(codes: Tensor, bits: int) -> None:
    """Raise TypeError or ValueError for codes that cannot be packed: see `pack_codes`."""
    _period(bits)
    if codes.dtype != torch.uint8:
        raise TypeError(f"pack_codes: codes are {codes.dtype}; pass torch.uint8.")
    if codes.numel() and not codes.is_meta and int(codes.max()) >= 2**bits:
        raise ValueError(
            f"pack_codes: code {int(codes.max())} does not fit in {bits} bits; "
            f"codes go from 0 to {2**bits - 1}."
        )


def _add_codes(words: Tensor, codes: Tensor, bits: int) -> None:
    """Write codes [before, blocks, period, after] into zeros [before, blocks, stride, after]."""
    for phase in range(codes.shape[2]):
        word, shift = divmod(phase * bits, WORD_BITS)
        code = codes[:, :, phase].int()
        words[:, :, word] |= code << shift
        if shift + bits > WORD_BITS:
            words[:, :, word + 1] |= code >> (WORD_BITS - shift)


def unpack_codes(
    words: Tensor, bits: int, n: int, *, dim: int = -1, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """Unpack n codes along `dim` from words of pack_codes; the exact inverse.

    words is int32 with ceil(n * bits / 32) words along `dim`. The codes have `dtype`, so that a
    kernel that needs float32 codes does not convert them in a second pass. Works on fake (tracing)
    tensors.

    Raises TypeError unless words are int32, ValueError for an invalid bit width or number of words.
    """
    period, stride = _period(bits)
    check_words(words, bits)
    lead, held, trail = _split(words, dim)
    before, after = math.prod(lead), math.prod(trail)
    if held != words_for(n, bits):
        raise ValueError(
            f"unpack_codes: {held} words along dim {dim} do not match {n} codes of {bits} bits; "
            f"expected {words_for(n, bits)}."
        )
    if after == 1 and dtype == torch.uint8:
        return _unpack_bytes(words.reshape(before, held), bits, n).reshape(*lead, n, *trail)
    blocks = -(-n // period)
    flat = words.reshape(before, held, after)
    if held != blocks * stride:
        flat = pad(flat, (0, 0, 0, blocks * stride - held))
    flat = flat.view(before, blocks, stride, after)
    codes = torch.empty(before, blocks, period, after, dtype=dtype, device=words.device)
    step = max(1, _CHUNK // max(1, before * period * after))
    for begin in range(0, blocks, step):
        chunk = slice(begin, begin + step)
        _unpack_blocks(flat[:, chunk], bits, codes[:, chunk])
    kept = codes.view(before, blocks * period, after)[:, :n]
    return kept.reshape(*lead, n, *trail).contiguous()


def check_words(words: Tensor, bits: int) -> None:
    """Raise TypeError or ValueError for words that hold no codes: see `unpack_codes`."""
    _period(bits)
    if words.dtype != torch.int32:
        raise TypeError(f"unpack_codes: words are {words.dtype}; pass torch.int32.")


def codes_at(words: Tensor, bits: int, places: Tensor) -> Tensor:
    """Return the codes uint8 [rows, n] at int64 places [n] of words [rows, held] of pack_codes."""
    first, shift = places * bits // WORD_BITS, places * bits % WORD_BITS
    after = (first + 1).clamp_max(words.shape[1] - 1)  # read only where a code straddles
    low, high = (words.index_select(1, each).long() & 0xFFFFFFFF for each in (first, after))
    codes: Tensor = (low | high << WORD_BITS) >> shift & (2**bits - 1)
    return codes.to(torch.uint8)


def _unpack_bytes(words: Tensor, bits: int, n: int) -> Tensor:
    """Unpack words [rows, held] into uint8 [rows, n].

    1, 2, 4 or 8 codes end where a byte of the stream ends (which is little-endian, as numbers are).
    Their bytes become an integer with as many bytes as codes, whose halves move apart, then their
    halves, until every code has a byte of its own.
    """
    together = 8 // math.gcd(8, bits)
    rows, numbers, held = len(words), -(-n // together), together * bits // 8
    # Flat, because a matrix of one column is contiguous with any stride.
    stream = words.contiguous().flatten().view(torch.uint8).view(rows, 4 * words.shape[1])
    stream = pad(stream, (0, max(0, numbers * held - stream.shape[1])))[:, : numbers * held]
    pieces = stream.unflatten(1, (numbers, held))
    codes = torch.empty(rows, numbers, dtype=_INTEGERS[together], device=words.device)
    step = max(1, _CHUNK // max(1, together * numbers))
    for begin in range(0, rows, step):
        some, found = pieces[begin : begin + step], codes[begin : begin + step]
        found.copy_(some[..., 0])
        for place in range(1, held):
            found |= some[..., place].to(found.dtype) << (8 * place)
        _move_apart(found, bits, together)
    return codes.view(torch.uint8)[:, :n].contiguous()


def _move_apart(numbers: Tensor, bits: int, count: int) -> None:
    """Move `count` adjacent codes in every integer into its bytes, in place."""
    size = count
    while size > 1:
        size //= 2  # codes that stay together
        width, gap = size * bits, size * (8 - bits)
        low = sum(((1 << width) - 1) << (16 * size * place) for place in range(count // 2 // size))
        if width <= gap:
            numbers |= numbers << gap
            numbers &= low | low << (8 * size)
        else:
            high = (numbers & low << width) << gap
            numbers &= low
            numbers |= high


def _unpack_blocks(words: Tensor, bits: int, codes: Tensor) -> None:
    """Unpack words [before, blocks, stride, after] into codes [before, blocks, period, after]."""
    mask = 2**bits - 1
    for word in range(words.shape[2]):
        first = -(-word * WORD_BITS // bits)
        end = (word + 1) * WORD_BITS // bits
        shifts = torch.arange(
            first * bits - word * WORD_BITS,
            end * bits - word * WORD_BITS,
            bits,
            dtype=torch.int32,
            device=words.device,
        )
        # One broadcast for all codes that are entirely in this word. >> copies the sign bit
        # downwards; the mask removes it, together with the other codes.
        whole = words[:, :, word, None] >> shifts[:, None]
        codes[:, :, first:end] = whole.bitwise_and_(mask)
        low = (word + 1) * WORD_BITS - end * bits
        if low:  # the next code straddles: `low` bits here, the others begin the next word
            start = (words[:, :, word] >> (WORD_BITS - low)) & (2**low - 1)
            codes[:, :, end] = (start | (words[:, :, word + 1] << low)) & mask


def _period(bits: int) -> tuple[int, int]:
    """Return (codes, words) after which the stream is word-aligned again; (32, 3) for 3 bits."""
    if bits not in BIT_WIDTHS:
        raise ValueError(f"bits={bits} is not a bit width; choose one of 2 to 8.")
    codes = WORD_BITS // math.gcd(WORD_BITS, bits)
    return codes, codes * bits // WORD_BITS


def _split(tensor: Tensor, dim: int) -> tuple[torch.Size, int, torch.Size]:
    """Return the sizes before `dim`, the size of `dim`, and the sizes after it."""
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"dim={dim} is out of range for a tensor with {tensor.dim()} dimensions.")
    axis = dim % tensor.dim()
    return tensor.shape[:axis], tensor.shape[axis], tensor.shape[axis + 1 :]
