"""BPE as tokenizer.json has it, and SentencePiece's vocabulary made into it.

SentencePiece joins the two neighbours whose union has the highest score, the leftmost first; BPE
the pair of least rank. Every way to cut a piece in two pieces is a merge, ranked by the piece's
score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, OWN, UNUSED = 1, 2, 3, 4, 5
_MERGED = (NORMAL, OWN, UNUSED)
_SPACE = "▁"


def bpe(
    vocabulary: Mapping[str, int],
    pairs: Sequence[tuple[str, str]],
    *,
    unknown: str | None = None,
    whole_words: bool = False,
) -> dict[str, Any]:
    """The model of tokenizer.json.

    unknown      token of what no piece has, after its bytes were tried (SentencePiece); None: every
                 byte is a token.
    whole_words  a word that is a token is taken before any merge.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": unknown is not None,
        "ignore_merges": whole_words,
        "vocab": vocabulary,
        "merges": [list(pair) for pair in pairs],
    }


def merges(
    vocabulary: Mapping[str, int], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, the highest score first."""
    pieces = {token for token, number in vocabulary.items() if kinds[number] in _MERGED}
    found = [
        (-scores[number], number, token[:at], token[at:])
        for token, number in vocabulary.items()
        if token in pieces
        for at in range(1, len(token))
        if token[:at] in pieces and token[at:] in pieces
    ]
    return [(left, right) for _, _, left, right in sorted(found, key=lambda each: each[:2])]


def spaces(before: bool) -> dict[str, Any]:
    """Normalizer, pre_tokenizer and decoder of spaces that are pieces.

    before  a space is put before every text.
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] * before
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * before
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
    }
