"""The model in the package: what its README says, small, and good at its stories."""

from __future__ import annotations

import copy
import hashlib
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from harness.embedded import MODEL_DIR, TOKENIZER_DIR, lexicon
from harness.embedded.stories import last_word_items, stories
from tools.embedded.evaluate import rounded, score
from tools.embedded.smooth import smooth
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
    few = items[:20]
    whole, four, three, two = (
        score(each, tokenizer, few).perplexity
        for each in (model, *(rounded(model, bits) for bits in (4, 3, 2)))
    )
    assert whole < four < three < two
    assert three > whole * 1.015
    assert two > whole * 2


def test_smoothing_changes_no_logit_and_evens_out_columns() -> None:
    """Gains and biases of the norms are not 0 and 1; the last norm's gains are all the same."""
    generator = torch.Generator().manual_seed(3)
    config = OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, word_embed_proj_dim=32, activation_function="relu",
    )  # fmt: skip
    plain = OPTForCausalLM(config).double().eval()
    for name, parameter in plain.named_parameters():
        parameter.data.normal_(1.0 if "norm.weight" in name else 0.0, 0.3, generator=generator)
    plain.model.decoder.final_layer_norm.weight.data.fill_(1.3)
    plain.model.decoder.layers[0].self_attn.k_proj.weight.data[:, :4] *= 20
    smoothed = copy.deepcopy(plain)
    smooth(smoothed, 0)
    ids = torch.randint(0, 64, (3, 16), generator=generator)
    torch.testing.assert_close(smoothed(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
    ratios = []
    for model in (plain, smoothed):
        sizes = model.model.decoder.layers[0].self_attn.k_proj.weight.detach().norm(dim=0)
        ratios.append(float(sizes.max() / sizes.median()))
    assert ratios[1] < ratios[0] / 2
    again = copy.deepcopy(plain)
    smooth(again, 0)
    assert torch.equal(again.lm_head.weight, smoothed.lm_head.weight)


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
