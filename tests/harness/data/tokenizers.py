"""Tokenizers like those of the families that the papers measure, trained on embedded stories."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.data import told
from harness.embedded import MODEL_DIR

PIECES = 600
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def embedded() -> Any:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


def gpt2_style() -> PreTrainedTokenizerFast:
    """Byte-level BPE with nothing around a text, as GPT-2, BLOOM and Pythia have."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    _train(core, ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet())
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=end, eos_token=end)


def llama_style() -> PreTrainedTokenizerFast:
    """BPE over a text whose spaces are U+2581, with a piece for each byte and BOS before a text."""
    merged = _spaced()
    vocabulary = _with_bytes(list(merged["vocab"]))
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    merges = [tuple(pair) for pair in merged["merges"]]
    core = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return _sentencepiece(core)


def unigram_style() -> PreTrainedTokenizerFast:
    """A unigram model whose words begin with U+2581, and EOS behind a text."""
    vocabulary = _with_bytes(list(_spaced()["vocab"]))
    scores = [(piece, -5.0 - number / 100) for number, piece in enumerate(vocabulary)]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    core.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    return _sentencepiece(core)


MADE: dict[str, Callable[[], Any]] = {
    "embedded": embedded,
    "gpt2-style": gpt2_style,
    "llama-style": llama_style,
    "unigram-style": unigram_style,
}


@cache
def _spaced() -> dict[str, Any]:
    """Pieces and merges of stories whose spaces are U+2581."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    _train(core, [], [])
    model: dict[str, Any] = json.loads(core.to_str())["model"]
    return model


def _train(core: Tokenizer, special: list[str], alphabet: list[str]) -> None:
    trainer = BpeTrainer(
        vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(told.texts("test", 100), trainer)


def _with_bytes(pieces: list[str]) -> list[str]:
    return ["<unk>", "<s>", "</s>", *BYTES, *pieces]


def _sentencepiece(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
