"""How texts are cut before merges are applied, by the names of tokenizer.ggml.pre.

llama.cpp's source gives these names a meaning; the expressions here are those of the tokenizers
that they stand for. A name that is not known is refused, because another cut gives other ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BYTE_LEVEL: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_DIGITS = {"type": "Digits", "individual_digits": True}
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS, _SIGNS_AND_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


@dataclass(frozen=True)
class Cut:
    """How texts become words.

    pre_tokenizer  that of tokenizer.json; normalizer likewise.
    whole_words    a word that is a token is taken before any merge.
    bos            BOS stands before every text unless the file says otherwise.
    """

    pre_tokenizer: dict[str, Any]
    normalizer: dict[str, Any] | None = None
    whole_words: bool = False
    bos: bool = False


def _by(*alternatives: str) -> dict[str, Any]:
    expression = {
        "type": "Split",
        "pattern": {"Regex": "|".join(alternatives)},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "type": "Sequence",
        "pretokenizers": [expression, {**BYTE_LEVEL, "use_regex": False}],
    }


def _cased(short: str) -> tuple[str, str]:
    """Words whose capitals come first, with a short form behind them."""
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{short}", f"{start}{_UPPER}+{_LOWER}*{short}"


_GPT2 = Cut(BYTE_LEVEL)
_SINGLE_DIGITS = Cut({"type": "Sequence", "pretokenizers": [_DIGITS, BYTE_LEVEL]})
_THREE_DIGITS = _by(_SHORT, _WORD, r"\p{N}{1,3}", _SIGNS, _SPACES)
_LLAMA3 = Cut(_THREE_DIGITS, whole_words=True, bos=True)
_ONE_DIGIT = _by(_SHORT, _WORD, r"\p{N}", _SIGNS, _SPACES)
_TEKKEN = _by(*_cased(""), r"\p{N}", _SIGNS_AND_SLASH, _SPACES)
_GPT4O = _by(*_cased(f"{_SHORT}?"), r"\p{N}{1,3}", _SIGNS_AND_SLASH, _SPACES)

CUTS: dict[str, Cut] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Cut(_THREE_DIGITS)),
    # llama.cpp does not compose characters first, as the tokenizers of Qwen do.
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Cut(_ONE_DIGIT, {"type": "NFC"})),
    "tekken": Cut(_TEKKEN, whole_words=True, bos=True),
    "gpt-4o": Cut(_GPT4O),
}
