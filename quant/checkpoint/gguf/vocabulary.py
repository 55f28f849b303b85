"""Keys of the tokenizer made of tokenizer.json: the reverse of `quant.checkpoint.gguf.tokenizer`.

Two kinds are written, as two are read: byte-level BPE whose cut has a name, and SentencePiece's
BPE, whose scores follow from the order of its merges. The keys are read back with the reader's own
code; both tokenizers must give the same ids of a few texts that hold whatever differs between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from quant.checkpoint.files import tokenizer_files
from quant.checkpoint.gguf.cuts import CUTS
from quant.checkpoint.gguf.file import GgufFile
from quant.checkpoint.gguf.pieces import CONTROL, NORMAL, OWN, UNKNOWN, UNUSED, merges
from quant.checkpoint.gguf.tokenizer import BYTE_LEVEL_BPE, PIECES, SPECIAL
from quant.checkpoint.gguf.tokenizer import tokenizer_files as read_back
from quant.errors import ArtifactError

_BYTE = 6  # tokenizer.ggml.token_type of <0x00> to <0xFF>
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_SPACE = "▁"
_OTHERWISE = "use --format gptq-v2 or compressed-tensors"
_PROBES = (
    "Hello world, it's 12345 o'clock;  two  spaces\n\n\tand\r\nlines ",
    " leading, trailing ",
    "élan É ½ ³ naïve 漢字かな 한국어 Привет \U0001f408\u200d⬛",
    "a" * 40 + "____ ||| ((x_y)) 'S don't I'LL <s> </s> <unk> [INST]",
    "",
)


def tokenizer_keys(source: Path, rows: int) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of the tokenizer in `source` for an embedding with this many rows, and notes.

    The ids of texts are the same but for what the notes say. Raises ArtifactError, naming the part,
    for a tokenizer that is not written.
    """
    tokenizer = _load(source)
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model.get("type") != "BPE":
        raise _unwritten(source, "model.type", model.get("type"))
    for key, only in (("dropout", None), ("continuing_subword_prefix", ""),
                      ("end_of_word_suffix", "")):  # fmt: skip
        if (model.get(key) or only) != only:
            raise _unwritten(source, f"model.{key}", model[key])
    tokens, kinds = _tokens(source, whole, tokenizer.unk_token, rows)
    make = _pieces if model.get("byte_fallback") else _byte_level
    keys = make(source, whole, tokens, kinds)
    keys |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    before, behind = _around(source, tokenizer)
    keys |= {"tokenizer.ggml.add_bos_token": before, "tokenizer.ggml.add_eos_token": behind}
    for name, key in SPECIAL.items():
        number = getattr(tokenizer, f"{name}_id", None)
        if number is not None:
            keys[key] = int(number)
    if isinstance(tokenizer.chat_template, str):
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    # Metaspace, which transformers has for SentencePiece, puts no second space before a text.
    once = _fallback(whole) and (whole["pre_tokenizer"] or {}).get("type") == "Metaspace"
    return keys, _check_ids(source, tokenizer, keys, once)


def _load(source: Path) -> Any:
    if not tokenizer_files(source):
        raise ArtifactError(
            f"{source} has no tokenizer, which a GGUF file holds: copy the tokenizer files of the "
            "original model beside the weights."
        )
    try:
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # whatever the class of the tokenizer raises
        reason = " ".join(str(error).split())[:160]
        raise ArtifactError(
            f"{source} has a tokenizer that transformers cannot load ({reason}): {_OTHERWISE}."
        ) from error
    if not found.is_fast:
        raise _unwritten(source, "class", type(found).__name__)
    return found


def _tokens(
    source: Path, whole: Mapping[str, Any], unknown: str | None, rows: int
) -> tuple[list[str], list[int]]:
    """Return every row's token and its type; rows without one are padding."""
    named = {number: token for token, number in whole["model"]["vocab"].items()}
    bytes_of = set(_BYTES) if _fallback(whole) else set()
    kinds = {number: _BYTE if token in bytes_of else NORMAL for number, token in named.items()}
    for added in whole["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if added[flag]:
                raise _unwritten(source, f"{flag} of the token {added['content']}", True)
        named[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else OWN
    if _fallback(whole) and unknown in whole["model"]["vocab"]:
        kinds[whole["model"]["vocab"][unknown]] = UNKNOWN
    if max(named, default=0) >= rows:
        raise ArtifactError(
            f"{source} has a token {max(named)} and an embedding of {rows} rows: the tokenizer is "
            "of another model."
        )
    tokens = [named.get(number, f"[PAD{number}]") for number in range(rows)]
    return tokens, [kinds.get(number, UNUSED) for number in range(rows)]


def _fallback(whole: Mapping[str, Any]) -> bool:
    return bool(whole["model"].get("byte_fallback"))


def _byte_level(
    source: Path, whole: Mapping[str, Any], _tokens: Sequence[str], _kinds: Sequence[int]
) -> dict[str, Any]:
    model, cut = whole["model"], _cut(whole["pre_tokenizer"])
    whole_words = bool(model.get("ignore_merges"))
    wanted = (cut, whole["normalizer"], whole_words)
    fitting = [
        name
        for name, each in CUTS.items()
        if (_cut(each.pre_tokenizer), each.normalizer, each.whole_words) == wanted
    ]
    if not fitting:
        raise ArtifactError(
            f"{source} has a tokenizer that cuts texts in a way without a name in GGUF "
            f"(pre_tokenizer {str(cut)[:120]}, normalizer {str(whole['normalizer'])[:60]}): "
            f"{_OTHERWISE}."
        )
    pairs = [_pair(merge) for merge in model["merges"]]
    odd = next((pair for pair in pairs if any(" " in part for part in pair)), None)
    if odd is not None:
        raise _unwritten(source, "merge", odd)
    return {
        "tokenizer.ggml.model": BYTE_LEVEL_BPE,
        "tokenizer.ggml.pre": fitting[0],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs],
    }


def _cut(node: Any) -> Any:
    """A pre_tokenizer without what changes no ids, and with defaults said."""
    if not isinstance(node, Mapping):
        return node
    if node.get("type") == "Sequence":
        return [_cut(each) for each in node["pretokenizers"]]
    found = {key: value for key, value in node.items() if key not in ("trim_offsets", "invert")}
    return {**found, **({"invert": True} if node.get("invert") else {})}


def _pieces(
    source: Path, whole: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]
) -> dict[str, Any]:
    model = whole["model"]
    if model.get("ignore_merges"):
        raise _unwritten(source, "model.ignore_merges", True)
    if not set(_BYTES) <= model["vocab"].keys():  # without them unknown characters have other ids
        raise _unwritten(source, "vocabulary", "without a token for every byte")
    pairs = [_pair(merge) for merge in model["merges"]]
    order = dict.fromkeys("".join(pair) for pair in pairs)  # the first pair of a piece counts
    scores = {piece: -float(rank) for rank, piece in enumerate(order)}
    found = [scores.get(token, -float(len(order))) for token in tokens]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = merges(vocabulary, found, kinds)
    joined = ["".join(pair) for pair in pairs]
    if sorted(made) != sorted(pairs) or ["".join(pair) for pair in made] != joined:
        raise ArtifactError(
            f"{source} has {len(pairs)} merges, and the scores of its pieces, which a GGUF file "
            f"has in their place, would give {len(made)} others: {_OTHERWISE}."
        )
    return {
        "tokenizer.ggml.model": PIECES,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": found,
        "tokenizer.ggml.add_space_prefix": _space_before(source, whole),
        "tokenizer.ggml.remove_extra_whitespaces": False,
    }


def _space_before(source: Path, whole: Mapping[str, Any]) -> bool:
    """Whether a space is put before every text; ArtifactError for another treatment of spaces."""
    cut, normalizer = whole["pre_tokenizer"], whole["normalizer"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    steps = (normalizer or {}).get("normalizers", [normalizer])
    # Gemma's cuts behind spaces, of which none is left.
    at_spaces = (cut or {}).get("type") == "Split" and cut["pattern"] == {"String": " "}
    if cut is None or (at_spaces and replace in steps):
        for found, before in (([prepend, replace], True), ([replace], False)):
            if steps == found:
                return before
    elif normalizer is None and cut.get("type") == "Metaspace" and not cut.get("split", True):
        return bool(cut.get("prepend_scheme") != "never")
    raise _unwritten(source, "treatment of spaces", {"normalizer": normalizer, "cut": cut})


def _around(source: Path, tokenizer: Any) -> tuple[bool, bool]:
    """Return whether BOS stands before and EOS behind every text, from the ids of two texts."""
    seen = set()
    for text in ("a", "The cat"):
        plain, ids = (
            tokenizer(text, add_special_tokens=special)["input_ids"] for special in (False, True)
        )
        more = len(ids) - len(plain)
        at = next(i for i in range(more + 1) if ids[i : i + len(plain)] == plain or i == more)
        before, behind = ids[:at], ids[at + len(plain) :]
        seen.add((tuple(before), tuple(behind)))
    allowed = {
        ((tokenizer.bos_token_id,) * bos, (tokenizer.eos_token_id,) * eos): (bos, eos)
        for bos in (False, True)
        for eos in (False, True)
    }
    (found, *others) = seen
    if others or found not in allowed:
        raise _unwritten(source, "what stands around every text", found)
    return allowed[found]


def _check_ids(source: Path, tokenizer: Any, keys: Mapping[str, Any], once: bool) -> list[str]:
    """Raise ArtifactError, with a text, unless the reader's tokenizer gives the same ids.

    once  whether a space is put before a text, and behind special tokens in it, only where none is,
          which no file can say: the result is then a note on such texts.
    """
    made = read_back(GgufFile(source, keys, {}))["tokenizer.json"]
    rebuilt = type(tokenizer.backend_tokenizer).from_str(json.dumps(made))
    kinds = keys["tokenizer.ggml.token_type"]
    added = [t for t, kind in zip(keys["tokenizer.ggml.tokens"], kinds, strict=True)
             if kind in (CONTROL, OWN)]  # fmt: skip
    inside = [" ".join(added[:64]), *(f"a{each} b" for each in added[:64])]
    notes: list[str] = []
    for text in (*_PROBES, *inside):
        expected = tokenizer(text)["input_ids"]
        if rebuilt.encode(text).ids == expected:
            continue
        if once and (text.startswith(" ") or any(each in text for each in added)):
            notes = [
                "readers of GGUF put a space before every text and behind special tokens in it, as "
                "SentencePiece does; transformers puts none before a text that begins with one, or "
                "none behind special tokens. Ids of other texts are the same."
            ]
        else:
            raise ArtifactError(
                f"{source} has a tokenizer whose ids a GGUF file would change, such as those of "
                f"{text[:40]!r}: {_OTHERWISE}."
            )
    return notes


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _unwritten(source: Path, part: str, value: object) -> ArtifactError:
    return ArtifactError(
        f"{source} has a tokenizer whose {part} is {str(value)[:80]}, which is not written to "
        f"GGUF: {_OTHERWISE}."
    )
