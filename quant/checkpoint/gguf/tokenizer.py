"""Rebuild tokenizer.json from the vocabulary of a GGUF file.

Two kinds are read: byte-level BPE (tokenizer.ggml.model = gpt2), whose merges are in the file and
whose cut is a name (quant.checkpoint.gguf.cuts), and SentencePiece's BPE (llama), whose merges
follow from the scores of its pieces (quant.checkpoint.gguf.pieces).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quant.checkpoint.gguf.cuts import BYTE_LEVEL, CUTS
from quant.checkpoint.gguf.file import GgufFile
from quant.checkpoint.gguf.pieces import CONTROL, OWN, UNKNOWN, bpe, merges, spaces
from quant.errors import ArtifactError

BYTE_LEVEL_BPE, PIECES = "gpt2", "llama"
SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
# Of a SentencePiece file that does not say them, as llama.cpp has them.
_PIECES_SPECIAL = {"unk_token": 0, "bos_token": 1, "eos_token": 2}
# Keys that change how a text is cut, with the only value that is read.
_FIXED = {
    "tokenizer.ggml.remove_extra_whitespaces": False,
    "tokenizer.ggml.precompiled_charsmap": None,
}


def tokenizer_files(file: GgufFile) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json, by name; ArtifactError for another tokenizer."""
    tokens: list[str] = file.required("tokenizer.ggml.tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ArtifactError(
            f"{file.path} has {len(tokens) - len(vocabulary)} tokens twice in its vocabulary: "
            "use another file of the model."
        )
    kinds = _for_every_token(file, "tokenizer.ggml.token_type", tokens)
    special = {key: tokens[number] for key, number in _special(file, len(tokens)).items()}
    kind, bos, parts = _parts(file, vocabulary, kinds, special)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, tokens[number], each != OWN)
            for number, each in enumerate(kinds)
            if each in (CONTROL, OWN) or (each == UNKNOWN and kind == PIECES)
        ],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _around(file, special, vocabulary, bos),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }
    config: dict[str, Any] = {
        # Other classes of transformers replace the cut by that of their family.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return {"tokenizer.json": whole, "tokenizer_config.json": config}


def token_ids(file: GgufFile) -> dict[str, int | None]:
    """The ids of special tokens for config.json; None instead of what a class of models assumes."""
    named = _special(file, len(file.required("tokenizer.ggml.tokens")))
    return {f"{key}_id": named.get(key) for key in SPECIAL if key != "unk_token"}


def _parts(
    file: GgufFile, vocabulary: dict[str, int], kinds: Sequence[int], special: dict[str, str]
) -> tuple[str, bool, dict[str, Any]]:
    """The kind, whether BOS comes first unless the file says otherwise, and parts of the JSON."""
    kind, name = file.required("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre")
    cut = CUTS.get(str(name))
    for key, only in _FIXED.items():
        if file.metadata.get(key, only) != only:
            raise ArtifactError(
                f"{file.path} has {key}={str(file.metadata[key])[:40]}, which changes the ids of "
                "texts and is not read: use the Hugging Face folder of the model."
            )
    if kind == PIECES:
        scores = _for_every_token(file, "tokenizer.ggml.scores", vocabulary)
        model = bpe(vocabulary, merges(vocabulary, scores, kinds), unknown=special["unk_token"])
        return kind, True, {**spaces(_flag(file, "add_space_prefix", True)), "model": model}
    if kind != BYTE_LEVEL_BPE or cut is None:
        raise ArtifactError(
            f"{file.path} has the tokenizer {kind} (cut as {name}), and only {PIECES} and "
            f"{BYTE_LEVEL_BPE} (cut as {', '.join(CUTS)}) are rebuilt from GGUF: use the Hugging "
            "Face folder of the model."
        )
    pairs = [_pair(merge) for merge in file.required("tokenizer.ggml.merges")]
    return (
        kind,
        cut.bos,
        {
            "normalizer": cut.normalizer,
            "pre_tokenizer": cut.pre_tokenizer,
            "decoder": {**BYTE_LEVEL, "add_prefix_space": True},
            "model": bpe(vocabulary, pairs, whole_words=cut.whole_words),
        },
    )


def _special(file: GgufFile, count: int) -> dict[str, int]:
    """Ids of special tokens, by name; ArtifactError for one that no token has."""
    pieces = file.required("tokenizer.ggml.model") == PIECES
    found = {}
    for name, key in SPECIAL.items():
        number = file.metadata.get(key, _PIECES_SPECIAL.get(name) if pieces else None)
        if number is None:
            continue
        if not 0 <= number < count:
            raise ArtifactError(
                f"{file.path} has {key}={number} and {count} tokens: it is damaged or was changed; "
                "download it again."
            )
        found[name] = int(number)
    return found


def _for_every_token(file: GgufFile, key: str, tokens: Sequence[str] | dict[str, int]) -> list[Any]:
    found: list[Any] = file.required(key)
    if len(found) != len(tokens):
        raise ArtifactError(
            f"{file.path} has {key} for {len(found)} of its {len(tokens)} tokens: it is damaged or "
            "was changed; download it again."
        )
    return found


def _flag(file: GgufFile, name: str, default: bool) -> bool:
    return bool(file.metadata.get(f"tokenizer.ggml.{name}", default))


def _added(number: int, token: str, special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _around(
    file: GgufFile, special: dict[str, str], vocabulary: dict[str, int], bos: bool
) -> dict[str, Any] | None:
    """What puts BOS before and EOS behind every text, if the file says so."""
    before = ["bos_token"] * _flag(file, "add_bos_token", bos)
    behind = ["eos_token"] * _flag(file, "add_eos_token", False)
    used = [special[key] for key in (*before, *behind) if key in special]
    if not used:
        return None
    first, last = ([special[key] for key in keys if key in special] for keys in (before, behind))
    return {
        "type": "TemplateProcessing",
        "single": [*_placed(first), _sequence("A"), *_placed(last)],
        "pair": [*_placed(first), _sequence("A"), *_placed(last), _sequence("B")],
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in used
        },
    }


def _placed(tokens: list[str]) -> list[dict[str, Any]]:
    return [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right
