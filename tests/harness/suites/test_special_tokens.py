"""Special tokens at both ends of a text, and ids that the model does not have, in every suite."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from harness.data import protocols
from harness.data.vocabulary import VocabularyError
from harness.run import quantizing
from harness.suites import comparing, divergence, perplexity, scoring, zeroshot_scoring
from harness.suites.zeroshot import Config
from harness.suites.zeroshot_model import Scorer
from harness.suites.zeroshot_tasks import TaskError
from tests.harness.suites.byte_model import byte_model, context, metric, write

FORMS = ("$A", "<s> $A", "<s> $A </s>", "$A </s>")


def tokenizer(form: str = "<s> $A", added: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte behind <s> (0) and </s> (1); `form` says what stands around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:255]
    vocabulary = {"<s>": 0, "</s>": 1} | {byte: n for n, byte in enumerate(alphabet, start=2)}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if form != "$A":
        core.post_processor = processors.TemplateProcessing(
            form, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    if added:
        core.add_tokens([added])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return byte_model()


def plain(text: str) -> list[int]:
    """The ids of a text without special tokens."""
    return tokenizer("$A")(text)["input_ids"]


@torch.no_grad()
def likelihood(model: Any, before: list[int], target: list[int]) -> float:
    """Log-likelihood of `target` behind `before`, in float64."""
    scores = model(torch.tensor([before + target])).logits[0].double().log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(target) - 1)
    return sum(float(scores[place, token]) for place, token in zip(places, target, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_no_token_behind_a_continuation_is_scored(
    model: LlamaForCausalLM, tmp_path: Path, form: str
) -> None:
    items = [{"context": "Lily was very", "continuation": " happy"}]
    file = write(tmp_path / "e.jsonl", items)
    given = context(model, tokenizer(form))
    result = zeroshot_scoring.run(given, Config([], {"e": file}))
    before = ([0] if form.startswith("<s>") else []) + plain("Lily was very")
    expected = likelihood(model, before, plain(" happy"))
    assert result.samples[0]["loglikelihoods"][0] == pytest.approx(expected, rel=1e-4)
    notes = result.metrics[0].notes
    assert "shared_token" not in notes
    first = "<s> 1 time (1 first)" if form.startswith("<s>") else "none"
    left = ", </s> behind texts left out" if form.endswith("</s>") else ""
    assert notes["special_tokens"] == first + left


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("blank", ["", " ", " \n "])
def test_a_blank_context_is_empty(
    model: LlamaForCausalLM, tmp_path: Path, form: str, blank: str
) -> None:
    """The target stands behind BOS alone, whatever the tokenizer does."""
    file = write(tmp_path / "e.jsonl", [{"context": blank, "continuation": "happy"}])
    result = zeroshot_scoring.run(context(model, tokenizer(form)), Config([], {"e": file}))
    expected = likelihood(model, [0], plain("happy"))
    assert result.samples[0]["loglikelihoods"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_bos_that_a_prompt_spells_out_stands_there_once(
    model: LlamaForCausalLM, tmp_path: Path, form: str
) -> None:
    file = write(tmp_path / "e.jsonl", [{"context": "<s>Lily", "continuation": " was"}])
    result = zeroshot_scoring.run(context(model, tokenizer(form)), Config([], {"e": file}))
    expected = likelihood(model, [0, *plain("Lily")], plain(" was"))
    assert result.samples[0]["loglikelihoods"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_rolling_likelihoods_and_prompts_that_are_continued(
    model: LlamaForCausalLM, form: str
) -> None:
    scorer = Scorer(context(model, tokenizer(form)), 64, 1)
    (found,) = scorer.loglikelihood_rolling([SimpleNamespace(args=("Lily was",), task_name="t")])
    assert found == pytest.approx(likelihood(model, [0], plain("Lily was")), rel=1e-4)
    ids, mask = scorer.tok_batch_encode(["Lily", "Lily was"], left_truncate_len=60)
    bos = [0] if form.startswith("<s>") else []
    assert ids[1].tolist() == bos + plain("Lily was")
    assert ids[0][mask[0].bool()].tolist() == bos + plain("Lily")


@pytest.mark.parametrize("form", FORMS)
def test_documents_and_texts_end_where_their_text_ends(tmp_path: Path, form: str) -> None:
    file = tmp_path / "t.txt"
    file.write_text("ab<|endoftext|><s>cde<|endoftext|>f")
    given: dict[str, Any] = {"path": str(file)}
    found = protocols.windows("documents", tokenizer(form), 8, **given)
    expected = [[0, *plain(part)] for part in ("ab", "cde", "f")]
    assert [window.tolist() for window in found.windows] == expected
    assert found.scored == 6
    left = ", </s> behind texts left out" if form.endswith("</s>") else ""
    assert found.special == "<s> 3 times (3 first)" + left
    file.write_text("abcdefg")
    text = protocols.windows("text", tokenizer(form), 2, **given)
    stream = ([0] if form.startswith("<s>") else []) + plain("abcdefg")
    assert [window.tolist() for window in text.windows] == [
        stream[n : n + 2] for n in range(0, len(stream) // 2 * 2, 2)
    ]
    crops = protocols.windows(
        "text-calibration", tokenizer(form), 6, use="calibration", sequences=40, **given
    )
    assert 1 not in torch.cat(crops.windows)


def test_every_record_says_which_special_tokens_stood_in_the_stream(
    model: LlamaForCausalLM, text: str
) -> None:
    given = context(model, tokenizer("<s> $A </s>"))
    settings: dict[str, Any] = {"protocols": ["text"], "paths": {"text": text}, "max_windows": 2}
    one = scoring.run(given, perplexity.Config(**settings))
    two = comparing.run(given, divergence.Config(**settings))
    said = "<s> 1 time (1 first), </s> behind texts left out"
    assert metric(one, "nll").notes["special_tokens"] == said
    assert metric(two, "kl_floor").notes["special_tokens"] == said


def refused(*_: Any, **__: Any) -> Any:
    raise AssertionError("the model was called before the vocabulary was checked")


def test_an_id_that_the_model_does_not_have(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that was added to the tokenizer alone: refused before the model is called."""
    big = tokenizer(added="happy")
    given = context(model, big)
    monkeypatch.setattr(model, "forward", refused)
    file = tmp_path / "t.txt"
    file.write_text("the happy dog ran")
    settings: dict[str, Any] = {"protocols": ["text"], "paths": {"text": str(file)}}
    sentence = r"the tokenizer gives 'happy' \(id 257\), but the model knows only 257 tokens"
    where = r"protocol text, t.txt: "
    with pytest.raises(VocabularyError, match=where + sentence):
        scoring.run(context(model, big, context_length=4), perplexity.Config(**settings))
    with pytest.raises(VocabularyError, match=where + sentence):
        comparing.run(context(model, big, context_length=4), divergence.Config(**settings))
    items = [
        {"context": "the dog", "continuation": " ran"},
        {"context": "the happy dog", "continuation": " ran"},
    ]
    tasks = write(tmp_path / "b.jsonl", items)
    with pytest.raises(TaskError, match=r"task b, 'the happy dog ran': " + sentence):
        zeroshot_scoring.run(given, Config([], {"b": tasks}))
    scorer = Scorer(given, 64, 1)
    request = SimpleNamespace(args=("the happy dog", {"until": ["."]}), task_name="g")
    with pytest.raises(TaskError, match=r"task g, 'the happy dog': " + sentence):
        scorer.generate_until([request])


def test_calibration_text_that_the_model_does_not_know(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    from harness.data.config import CalibConfig

    file = tmp_path / "t.txt"
    file.write_text("the happy dog ran" * 9)
    calib = CalibConfig("mine", "text-calibration", str(file), sequences=4, length=32)
    cell: Any = SimpleNamespace(
        choices=SimpleNamespace(calibration=calib, data=None),
        model=SimpleNamespace(config=SimpleNamespace(context=None)),
    )
    with pytest.raises(VocabularyError, match=r"protocol text-calibration, t.txt: .*'happy'"):
        quantizing.calibration(cell, model, tokenizer(added="happy"))
    _, inputs = quantizing.calibration(cell, model, tokenizer("$A </s>"))
    assert inputs["calibration special tokens"] == "none, </s> behind texts left out"
