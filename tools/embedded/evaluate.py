"""How good a model of the stories is: its perplexity beside the generator's, and its last words."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from harness.embedded.stories import Story


@dataclass(frozen=True)
class Score:
    """Figures over `stories` stories of `tokens` scored tokens in all.

    `perplexity` is exp of the mean negative log-likelihood a token, with </s> before each story;
    `generator_perplexity` is that of the generator for the same stories and tokens.
    `last_word_accuracy` is the share of stories whose last word is the model's first guess, knowing
    all of the story before it; `distractor_share` the share where the guess is another candidate.
    """

    stories: int
    tokens: int
    perplexity: float
    generator_perplexity: float
    last_word_accuracy: float
    distractor_share: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    stories: Iterable[Story],
    batch: int = 25,
) -> Score:
    """Return the figures of a model on whole stories, each in a row of its own."""
    items = list(stories)
    loss = right = distracted = tokens = 0.0
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        encoded = tokenizer([story.text for story in part], padding=True, return_tensors="pt")
        ids = encoded.input_ids
        logits = model(input_ids=ids, attention_mask=encoded.attention_mask).logits[:, :-1].float()
        labels = ids[:, 1:].masked_fill(encoded.attention_mask[:, 1:] == 0, -100)
        loss += functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        ).item()
        tokens += int((labels != -100).sum())
        guesses = logits.argmax(-1)
        for row, story in enumerate(part):
            begin = len(tokenizer(story.context).input_ids)
            answer = tokenizer(" " + story.last_word, add_special_tokens=False).input_ids
            guess = guesses[row, begin - 1 : begin - 1 + len(answer)].tolist()
            right += guess == answer
            distracted += (
                guess != answer and str(tokenizer.decode(guess)).strip() in story.candidates
            )
    return Score(
        stories=len(items),
        tokens=int(tokens),
        perplexity=math.exp(loss / tokens),
        generator_perplexity=math.exp(-sum(story.log_probability for story in items) / tokens),
        last_word_accuracy=right / len(items),
        distractor_share=distracted / len(items),
    )


@torch.no_grad()
def rounded(model: PreTrainedModel, bits: int) -> PreTrainedModel:
    """Return a copy whose block linears are rounded to nearest, a min-max grid for each output row.

    A quick look at how much a bit width hurts, without the machinery of `quant`.
    """
    result = copy.deepcopy(model)
    for name, module in result.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:
            weight = module.weight.float()
            low = weight.amin(1, keepdim=True).clamp(max=0)
            high = weight.amax(1, keepdim=True).clamp(min=0)
            scale = (high - low) / (2**bits - 1)
            zero = (-low / scale).round()
            codes = ((weight / scale).round() + zero).clamp(0, 2**bits - 1)
            module.weight.copy_(scale * (codes - zero))
    return result
