"""Rebuild tokenizer.json from the vocabulary and merges of a GGUF file.

Byte-level BPE alone is read (tokenizer.ggml.model = gpt2). How a text is cut before the merges are
applied is a name in the file (tokenizer.ggml.pre) that llama.cpp's source gives a meaning to; a
name that is not known here is refused, because another cut gives other ids.
"""

from __future__ import annotations

from typing import Any

from quant.checkpoint.gguf.file import GgufFile
from quant.errors import ArtifactError

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_DIGITS = {"type": "Digits", "individual_digits": True}
# By tokenizer.ggml.pre: digits alone (as in SmolLM and StarCoder), or GPT-2's own expression.
CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]},
}
_CONTROL, _OWN = 3, 4  # tokenizer.ggml.token_type of special tokens, and of others added whole
_SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def tokenizer_files(file: GgufFile) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json, by name; ArtifactError for another tokenizer."""
    kind, cut = file.required("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in CUTS:
        raise ArtifactError(
            f"{file.path} has the tokenizer {kind} (cut as {cut}), and only gpt2 (cut as "
            f"{' or '.join(CUTS)}) is rebuilt from GGUF: use the Hugging Face folder of the model."
        )
    tokens = file.required("tokenizer.ggml.tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ArtifactError(
            f"{file.path} has {len(tokens) - len(vocabulary)} tokens twice in its vocabulary: "
            "use another file of the model."
        )
    kinds = file.required("tokenizer.ggml.token_type")
    special = {key: tokens[file.metadata[where]] for key, where in _SPECIAL.items()
               if where in file.metadata}  # fmt: skip
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, tokens[number], kind == _CONTROL)
            for number, kind in enumerate(kinds)
            if kind in (_CONTROL, _OWN)
        ],
        "normalizer": None,
        "pre_tokenizer": CUTS[cut],
        "post_processor": _around(file, special, vocabulary),
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [_pair(merge) for merge in file.required("tokenizer.ggml.merges")],
        },
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


def token_ids(file: GgufFile) -> dict[str, int]:
    """The ids of special tokens for config.json."""
    named = {f"{key}_id": file.metadata.get(where) for key, where in _SPECIAL.items()}
    named.pop("unk_token_id")
    return {key: value for key, value in named.items() if value is not None}


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
    file: GgufFile, special: dict[str, str], vocabulary: dict[str, int]
) -> dict[str, Any] | None:
    """What puts BOS before and EOS behind every text, if the file says so."""
    before = ["bos_token"] * bool(file.metadata.get("tokenizer.ggml.add_bos_token"))
    behind = ["eos_token"] * bool(file.metadata.get("tokenizer.ggml.add_eos_token"))
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


def _pair(merge: str) -> list[str]:
    left, _, right = merge.partition(" ")
    return [left, right]
