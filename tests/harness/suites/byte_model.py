"""A tiny model of bytes, and its likelihoods by hand, for the tests of the zero-shot suite."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.records.record import Metric
from harness.suites.base import SuiteContext, SuiteResult
from tests.harness.suites.suite_context import suite_context


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, <s> first and no padding token: 257 ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {byte: n for n, byte in enumerate(alphabet, start=1)}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>")


def byte_model() -> LlamaForCausalLM:
    """2 layers of width 16, 64 positions."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(60)  # likelihoods far from uniform
    return model


def context(model: Any, tokenizer: Any = None, **more: Any) -> SuiteContext:
    """What the suite is given for it."""
    return suite_context(model, tokenizer or byte_tokenizer(), **more)


@torch.no_grad()
def by_hand(model: Any, prompt: str, target: str) -> tuple[float, bool]:
    """Log-likelihood of a target in float64, and whether it is the greedy continuation."""
    ids = byte_tokenizer().encode(prompt + target)
    count = len(target.encode())
    scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)[-count - 1 : -1]
    likelihood = sum(float(row[token]) for row, token in zip(scores, ids[-count:], strict=True))
    return likelihood, scores.argmax(-1).tolist() == ids[-count:]


def write(file: Path, items: list[dict[str, Any]]) -> str:
    """A file of JSON lines; its path."""
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(file)


def metric(result: SuiteResult, name: str) -> Metric:
    """The one metric of that name."""
    (found,) = (metric for metric in result.metrics if metric.name == name)
    return found


CHOICES = [
    {"query": "Question: Is it red?\n", "choices": ["yes", "no", "perhaps"], "gold": 1},
    {"query": "Question: Where?", "choices": ["in the big box", "out"], "gold": 0},
    {"query": "Question: Who?", "choices": ["Tom", "Anna and Bob"], "gold": 1},
    {"query": "Question: How many were there?", "choices": ["two", "4", "none"], "gold": 2},
    {"query": "Question: When?", "choices": ["at night", "soon"], "gold": 1},
]
