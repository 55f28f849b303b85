"""Tokenizers of GGUF files against textbook implementations of both kinds."""

import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import regex
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from quant.checkpoint.gguf.cuts import CUTS
from quant.checkpoint.gguf.file import read_gguf
from quant.checkpoint.gguf.tokenizer import token_ids, tokenizer_files
from quant.errors import ArtifactError
from tests.quant.checkpoint import gguf_families as families
from tests.quant.checkpoint.gguf_files import vocabulary

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# As their tokenizers have them, in one piece.
EXPRESSIONS = {
    "gpt-2": GPT2,
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
TEXT = "The cat SAT'S the  1212 cats/\n\n e\u0301lan don't 3½ \U0001f408\r\n  x_y"
PIECES = [("▁", -1.0), ("t", -2.0), ("h", -3.0), ("e", -4.0), ("a", -5.0), ("▁t", -0.5),
          ("he", -0.25), ("▁the", -0.75), ("th", -0.3), ("▁th", -0.6), ("aa", -0.1),
          ("▁▁", -0.9), ("the", -0.7)]  # fmt: skip


def written(tmp_path: Path, tokenizer: dict[str, Any], **metadata: Any) -> Path:
    keys = {**tokenizer, **{key.replace("__", "."): value for key, value in metadata.items()}}
    one = (np.ones(1, np.float32), gguf.GGMLQuantizationType.F32)
    return families.write_keys(tmp_path / "m.gguf", "llama", keys, {"token_embd.weight": one})


def tokenizer_of(tmp_path: Path, path: Path) -> Any:
    for name, content in tokenizer_files(read_gguf(path)).items():
        (tmp_path / name).write_text(json.dumps(content))
    return AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)


def merged(word: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    while pairs := [pair for pair in pairwise(word) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        at = next(i for i in range(len(word)) if tuple(word[i : i + 2]) == best)
        word = [*word[:at], "".join(best), *word[at + 2 :]]
    return word


@pytest.mark.parametrize("cut", EXPRESSIONS)
def test_byte_level_ids_are_those_of_the_textbook(tmp_path: Path, cut: str) -> None:
    tokens, merges = vocabulary()
    ranks = {(merge.split(" ")[0], merge.split(" ")[1]): n for n, merge in enumerate(merges)}
    letters = bytes_to_unicode()
    text = unicodedata.normalize("NFC", TEXT) if cut == "qwen2" else TEXT
    words = ["".join(letters[byte] for byte in piece.encode())
             for piece in regex.findall(EXPRESSIONS[cut], text)]  # fmt: skip
    expected = [tokens.index(piece) for word in words for piece in merged(list(word), ranks)]
    path = written(tmp_path, families.byte_level(cut), tokenizer__ggml__add_bos_token=False)
    assert tokenizer_of(tmp_path, path)(TEXT)["input_ids"] == expected


def test_whole_words_come_before_merges(tmp_path: Path) -> None:
    """Some vocabularies have tokens that no merges reach."""
    tokens = vocabulary()[0]
    keys = {**families.byte_level("llama-bpe"), "tokenizer.ggml.tokens": [*tokens, "Ġzzz"]}
    keys["tokenizer.ggml.token_type"] = [*keys["tokenizer.ggml.token_type"], 1]
    found = tokenizer_of(tmp_path, written(tmp_path, keys))
    assert found(" zzz")["input_ids"] == [1, len(tokens)], "BOS is the default of this cut"
    keys["tokenizer.ggml.pre"] = "dbrx"
    assert len(tokenizer_of(tmp_path, written(tmp_path, keys))(" zzz")["input_ids"]) == 4


def pieces(**changes: Any) -> dict[str, Any]:
    """Keys of a SentencePiece tokenizer: special tokens, bytes, pieces, one of the user's own."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds, scores = [2, 3, 3] + [6] * 256, [0.0] * 259
    for piece, score in PIECES:
        tokens, kinds, scores = [*tokens, piece], [*kinds, 1], [*scores, score]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*tokens, "<own>"],
        "tokenizer.ggml.scores": [*scores, 0.0],
        "tokenizer.ggml.token_type": [*kinds, 4],
        **changes,
    }


def sentencepiece(text: str, before: bool) -> list[int]:
    """The neighbours whose union has the highest score are joined, leftmost first."""
    keys = pieces()
    tokens = {token: number for number, token in enumerate(keys["tokenizer.ggml.tokens"])}
    scores = dict(PIECES)
    word = list(("▁" * before + text).replace(" ", "▁"))
    while joined := [
        (-scores[union], at) for at, union in enumerate(map("".join, pairwise(word)))
        if union in scores
    ]:  # fmt: skip
        at = min(joined)[1]
        word[at : at + 2] = ["".join(word[at : at + 2])]
    return [
        number
        for piece in word
        for number in ([tokens[piece]] if piece in tokens else [3 + b for b in piece.encode()])
    ]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("text", ["the the", "aaaa th", "  hé\n tea", "thethe a▁t"])
def test_ids_of_pieces_are_those_of_the_textbook(tmp_path: Path, text: str, before: bool) -> None:
    path = written(tmp_path, pieces(), tokenizer__ggml__add_space_prefix=before)
    found = tokenizer_of(tmp_path, path)
    assert found(text)["input_ids"] == [1, *sentencepiece(text, before)], "BOS is the default"
    decoded = found.decode(found(text)["input_ids"], skip_special_tokens=True)
    assert decoded == text.replace("▁", " ")
    assert found("<own>")["input_ids"] == [1, len(pieces()["tokenizer.ggml.tokens"]) - 1]
    assert (found.unk_token, found.bos_token, found.eos_token) == ("<unk>", "<s>", "</s>")
    assert token_ids(read_gguf(path)) == {
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer.ggml.model": "t5"}, "has the tokenizer t5"),
        ({"tokenizer.ggml.model": "gpt2"}, "(cut as default)"),
        ({"tokenizer.ggml.scores": [0.0]}, "tokenizer.ggml.scores for 1 of its 273 tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type for 1 of its 273"),
        ({"tokenizer.ggml.bos_token_id": 273}, "bos_token_id=273 and 273 tokens"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces=True"),
    ],
)
def test_other_tokenizers_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        tokenizer_files(read_gguf(written(tmp_path, pieces(**changes))))
    assert words in str(caught.value)


def test_every_cut_is_a_tokenizer(tmp_path: Path) -> None:
    """The expressions of all names compile."""
    for cut in CUTS:
        path = written(tmp_path, families.byte_level(cut))
        assert tokenizer_of(tmp_path, path)(TEXT)["input_ids"]
