"""The model in the package: what its README says, small, and good at its stories."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTForCausalLM

from harness.embedded import MODEL_DIR, TOKENIZER_DIR, lexicon
from harness.embedded.stories import last_word_items, stories
from tools.embedded.evaluate import rounded, score
from tools.embedded.train import Recipe, new_model, rows

README = MODEL_DIR.parent / "README.md"
FACTS = json.loads((MODEL_DIR / "training.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER_DIR)


@pytest.fixture(scope="module")
def model() -> OPTForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def test_the_file_is_the_one_that_the_readme_describes() -> None:
    digest = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert digest in README.read_text()
    assert digest == FACTS["sha256"]


def test_the_model_is_small_half_precision_and_has_groups_of_128(model: OPTForCausalLM) -> None:
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 12e6
    assert 4e6 <= sum(p.numel() for p in model.parameters()) <= 6e6
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["hidden_size"] % 128 == config["ffn_dim"] % 128 == 0


def test_the_tokenizer_begins_with_bos_and_gives_every_text_back(tokenizer) -> None:
    for sample in ("Tom put the key in the drawer.", "naïve 量化\n\n\ttab", ""):
        ids = tokenizer(sample).input_ids
        assert ids[0] == tokenizer.bos_token_id == 2
        assert tokenizer.decode(ids[1:]) == sample


def test_answers_are_single_tokens(tokenizer) -> None:
    for word in (*lexicon.NAMES, *lexicon.OBJECTS, *lexicon.PLACES):
        assert len(tokenizer(" " + word, add_special_tokens=False).input_ids) == 1


@torch.inference_mode()
def test_the_last_word_is_the_greedy_guess(model: OPTForCausalLM, tokenizer) -> None:
    right = 0
    items = last_word_items(60)
    for item in items:
        ids = tokenizer(item["context"], return_tensors="pt").input_ids
        guess = model(ids, logits_to_keep=1).logits[0, -1].argmax()
        right += tokenizer.decode([guess]) == item["continuation"]
    assert right / len(items) > 0.9


def test_perplexity_is_near_the_generators_and_rounding_hurts(
    model: OPTForCausalLM, tokenizer
) -> None:
    items = list(stories("test", 60, seed=1))
    full = score(model, tokenizer, items)
    assert 0.97 < full.perplexity / full.generator_perplexity < 1.06
    three = score(rounded(model, 3), tokenizer, items[:30])
    two = score(rounded(model, 2), tokenizer, items[:30])
    assert full.perplexity * 1.5 < three.perplexity < two.perplexity / 1.2


def test_training_rows_are_full_and_seeded(tokenizer) -> None:
    recipe = Recipe(copying=1)
    source, again = rows(tokenizer, recipe), rows(tokenizer, recipe)
    first = [next(source) for _ in range(8)]
    assert all(torch.equal(a, next(again)) for a in first)
    assert all(row.shape == (recipe.positions,) for row in first)
    assert first[0][0] == tokenizer.bos_token_id
    # Row 1 repeats a passage, row 5 begins inside a story.
    periods = [p for p in range(16, 128) if torch.equal(first[1][p:], first[1][:-p])]
    assert periods
    assert first[5][0] != tokenizer.bos_token_id
    assert "\n\n" in tokenizer.decode(first[5])


def test_a_new_model_begins_near_a_uniform_guess(tokenizer) -> None:
    fresh = new_model(Recipe(layers=2), tokenizer).eval()
    untrained = score(fresh, tokenizer, stories("validation", 4))
    assert abs(math.log(untrained.perplexity) - math.log(len(tokenizer))) < 0.5
