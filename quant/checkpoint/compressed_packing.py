"""The two packings of compressed-tensors: how codes lie in the int32 words of a row.

Since 0.18.0 the library packs the codes of a row as one stream of bits, so that codes of 3, 5, 6
and 7 bits straddle words. Up to 0.17.1 a word held 32 // bits codes, the first in its lowest bits,
and its highest bits were unused: ten codes of 3 bits in a word, which takes 3.2 bits a code.
Zero-points were packed like the codes. Widths that divide 32 lie the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quant.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from cuda_ext.codes import Words

STREAM, WHOLE = "stream", "whole"  # one stream of bits; whole codes in a word
LAST = (0, 17)  # the last releases with whole codes in a word
WORD_BITS = 32


def packing_of_release(version: Any) -> str:
    """Return the packing of a release of the library; "" if the version does not tell.

    Builds between 0.17.1 and 0.18.0 call themselves 0.17.2.a and a date.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.\d+)*", str(version))
    if numbers is None:
        return ""
    release = (int(numbers[1]), int(numbers[2]))
    if release == LAST and numbers[0] != version:
        return ""
    return STREAM if release > LAST else WHOLE


def same_in_both(bits: int) -> bool:
    """Whether codes of this width lie in words in the same way in both packings."""
    return WORD_BITS % bits == 0


def words(codes: int, bits: int, packing: str) -> int:
    """Return the words that codes take: ceil(codes / (32 // bits)) or ceil(codes * bits / 32)."""
    from cuda_ext.layout import words_for

    return -(-codes // _in_a_word(bits)) if packing == WHOLE else words_for(codes, bits)


def shown(bits: int, held: Sequence[tuple[int, int]]) -> str:
    """Return the packing that the words of a layer show; "" if they fit both, or none.

    held  pairs of words and codes, of a row and of a column of zero-points.
    """
    fitting = _fitting(bits, held)
    return fitting[0] if len(fitting) == 1 else ""


def settled(bits: int, declared: str, layer: str, held: Sequence[tuple[int, int]]) -> str:
    """Return the packing of a layer: the one that its words show, else the declared one.

    held      pairs of words and codes, as in `shown`.
    declared  the packing of the release that wrote the checkpoint; "" if that is unknown.

    Raises ArtifactError for words that fit both packings of an unknown release.
    """
    found = shown(bits, held) or declared
    # A single word has the same bits in both.
    alike = same_in_both(bits) or all(codes <= _in_a_word(bits) for _, codes in held)
    if found or alike or not _fitting(bits, held):
        return found or STREAM
    count, codes = held[0]
    raise ArtifactError(
        f"{layer}.weight_packed holds {codes} codes of {bits} bits in {count} words a row, which "
        f"fits both packings of the library ({_in_a_word(bits)} codes a word before 0.18, then one "
        "stream of bits), and the version in quantization_config names no release: set it "
        "in config.json to that of compressed-tensors that wrote the checkpoint, such as 0.17.1."
    )


def _fitting(bits: int, held: Sequence[tuple[int, int]]) -> list[str]:
    """Return the packings in which codes take as many words as are held."""
    return [
        packing
        for packing in (STREAM, WHOLE)
        if all(words(codes, bits, packing) == count for count, codes in held)
    ]


def codes_of(packed: Tensor, bits: int, count: int, packing: str, name: str) -> Tensor | Words:
    """Return `count` codes a row as uint8 from int32 words, or these words: see `unpack`."""
    from cuda_ext.codes import Words

    if packing != WHOLE or same_in_both(bits):
        return Words(packed, bits, count)
    return unpack(packed, bits, count, packing, name)


def unpack(packed: Tensor, bits: int, count: int, packing: str, name: str, dim: int = -1) -> Tensor:
    """Return `count` codes along `dim` as uint8 from int32 words along `dim` (0 or -1).

    Raises ArtifactError, naming the tensor, for words of whole codes that have other bits too.
    """
    from cuda_ext.codes import unpack_columns, unpack_rows

    if packing != WHOLE or same_in_both(bits):
        if dim == -1:
            return unpack_rows(packed, bits, count)
        return unpack_columns(packed, bits, count).t().contiguous()
    import torch

    rows = packed if dim == -1 else packed.t()
    held, mask = _in_a_word(bits), 2**bits - 1
    if bool((rows >> (held * bits)).any()):
        raise ArtifactError(
            f"{name} has bits beyond the {held} codes of {bits} bits that a word holds in files of "
            "compressed-tensors before 0.18: the file is damaged, or the version in its "
            "quantization_config is not that of the release that wrote it; correct it, or download "
            "the file again."
        )
    codes = torch.empty(*rows.shape, held, dtype=torch.uint8)
    for place in range(held):
        codes[..., place] = (rows >> (place * bits)).bitwise_and_(mask)
    kept = codes.flatten(1)[:, :count]
    return (kept if dim == -1 else kept.t()).contiguous()


def describe(bits: int) -> str:
    """Return what the packing of whole codes means, for records and people."""
    return (
        f"{_in_a_word(bits)} codes of {bits} bits a word, as compressed-tensors packed before 0.18"
    )


def _in_a_word(bits: int) -> int:
    return WORD_BITS // bits
