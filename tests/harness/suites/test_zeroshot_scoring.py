"""Zero-shot scores of files against log-likelihoods by hand and plain lm-eval."""

import copy
import math
import statistics
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.records.items import values_of
from harness.suites import zeroshot_scoring
from harness.suites.base import SuiteResult
from harness.suites.zeroshot import Config
from harness.suites.zeroshot_tasks import TaskError
from tests.harness.suites.byte_model import (
    CHOICES,
    by_hand,
    byte_model,
    byte_tokenizer,
    context,
    metric,
    write,
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return byte_model()


class Parrot:
    """A model that expects a space after anything, and a q after a space."""

    device = torch.device("cpu")
    config = LlamaConfig(vocab_size=257, max_position_embeddings=64)

    def get_input_embeddings(self) -> Any:
        return torch.nn.Embedding(257, 1)

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        space, q = byte_tokenizer().encode(" q")[1:]
        expected = torch.where(input_ids == space, q, space)
        logits = 3 * torch.nn.functional.one_hot(expected, 257).float()
        return SimpleNamespace(logits=logits + torch.linspace(0, 1, 257))


def test_multiple_choice_is_scored_as_in_the_paper(model: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", CHOICES)
    result = zeroshot_scoring.run(context(model), Config(["mine"], {"mine": file}, batch_size=3))
    right, right_by_length = [], []
    for item, sample in zip(CHOICES, result.samples, strict=True):
        prompt = item["query"].strip() + "\nAnswer:"
        scores = [by_hand(model, prompt, " " + choice)[0] for choice in item["choices"]]
        by_length = [s / len(c) for s, c in zip(scores, item["choices"], strict=True)]
        assert sample["loglikelihoods"] == pytest.approx(scores, rel=1e-4)
        assert sample["prediction"] == scores.index(max(scores))
        assert sample["gold"] == item["gold"]
        right.append(sample["prediction"] == item["gold"])
        right_by_length.append(by_length.index(max(by_length)) == item["gold"])
        assert sample["correct"] == right[-1]
        assert sample["acc_norm"] == right_by_length[-1]
    accuracy = metric(result, "accuracy")
    assert accuracy.value == statistics.fmean(right)
    assert metric(result, "acc_norm").value == statistics.fmean(right_by_length)
    share = accuracy.value
    assert accuracy.stderr == pytest.approx(math.sqrt(share * (1 - share) / 4))
    assert (accuracy.n, accuracy.n_unit, accuracy.unit) == (5, "documents", "fraction")
    assert accuracy.higher_is_better
    assert accuracy.notes["batch_size"] == "3"
    assert accuracy.notes["bos"] == "yes"
    for name, expected in (("accuracy", right), ("acc_norm", right_by_length)):
        items = metric(result, name).items
        assert items is not None
        assert (items.unit, items.ids) == ("documents", result.inputs["task:mine"])
        assert values_of(items).tolist() == expected


@pytest.mark.parametrize(
    ("metric", "scores", "choices", "ties"),
    [
        ("acc", [(-5.0, -5.00005, -9.0), (-5.0, -5.0002, -9.0)], ("a", "b", "c"), 1),
        ("acc", [(-9.0, -9.0, -5.0)], ("a", "b", "c"), 0),  # the best stands alone
        # -1 and -1.00004 a character; a hundredth of a nat apart as sums
        ("acc_norm", [(-2.0, -4.00008, -9.0)], ("ab", "abcd", "c"), 1),
        ("acc_norm", [(-2.0, -2.00005, -9.0)], ("ab", "abcd", "c"), 0),
        ("acc", [(-5.0,)], ("a",), None),
        ("perplexity", [(-5.0, -5.0)], ("a", "b"), None),
    ],
)
def test_choices_that_another_machine_could_change_are_counted(
    metric: str, scores: list[tuple[float, ...]], choices: tuple[str, ...], ties: int | None
) -> None:
    logged = [
        {
            "filtered_resps": [(score, False) for score in each],
            "arguments": [("prompt", f" {choice}") for choice in choices],
        }
        for each in scores
    ]
    assert zeroshot_scoring.count_ties(metric, logged) == ties


def test_ties_are_in_the_notes_of_choices_and_below_the_table(tmp_path: Path) -> None:
    class Even(LlamaForCausalLM):
        """Every token is as likely as any other."""

        def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
            found = super().forward(input_ids, **others)
            found.logits = torch.zeros_like(found.logits)
            return found

    even = Even(byte_model().config)
    documents = [{"query": "q", "choices": ["ab", "cd"], "gold": 0}] * 2
    file = write(tmp_path / "mine.jsonl", documents)
    result = zeroshot_scoring.run(context(even.eval()), Config(["mine"], {"mine": file}))
    assert metric(result, "accuracy").notes["ties"] == "2"


def test_last_words_are_scored_by_greedy_match_and_perplexity(tmp_path: Path) -> None:
    items = [
        {"context": "The box is", "continuation": "q"},
        {"context": "The bag is", "continuation": "z"},
        {"context": "The cup is", "continuation": "qu"},
    ]
    file = write(tmp_path / "words.jsonl", items)
    result = zeroshot_scoring.run(context(Parrot()), Config([], {"words": file}, batch_size=2))
    expected = [by_hand(Parrot(), item["context"], " " + item["continuation"]) for item in items]
    scores = [score for score, _ in expected]
    assert [sample["loglikelihoods"] for sample in result.samples] == [
        pytest.approx([score], rel=1e-5) for score in scores
    ]
    assert [sample["correct"] for sample in result.samples] == [True, False, False]
    assert [is_greedy for _, is_greedy in expected] == [True, False, False]
    perplexity = metric(result, "target_perplexity")
    assert perplexity.value == pytest.approx(math.exp(-statistics.fmean(scores)), rel=1e-5)
    error = statistics.stdev(scores) / math.sqrt(3) * perplexity.value
    assert perplexity.stderr == pytest.approx(error, rel=1e-4)
    assert not perplexity.higher_is_better
    assert metric(result, "accuracy").value == pytest.approx(1 / 3)
    assert perplexity.items is not None
    assert perplexity.items.exponential
    assert values_of(perplexity.items).tolist() == pytest.approx([-s for s in scores], rel=1e-5)


def test_options_may_stand_in_the_context(model: LlamaForCausalLM, tmp_path: Path) -> None:
    items = [
        {"context_options": ["Tom said so Tom", "Tom said so Ann"], "continuation": c, "gold": g}
        for c, g in (("ran.", 0), ("hid.", 1), ("fell.", 1))
    ]
    file = write(tmp_path / "options.jsonl", items)
    result = zeroshot_scoring.run(context(model), Config(["o"], {"o": file}))
    for item, sample in zip(items, result.samples, strict=True):
        target = " " + str(item["continuation"])
        scores = [by_hand(model, option, target)[0] for option in item["context_options"]]
        assert sample["loglikelihoods"] == pytest.approx(scores, rel=1e-4)
        assert sample["correct"] == (scores.index(max(scores)) == item["gold"])


def test_the_figures_are_those_of_plain_lm_eval(model: LlamaForCausalLM, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from harness.suites import zeroshot_tasks

    file = write(tmp_path / "mine.jsonl", CHOICES)
    ours = zeroshot_scoring.run(context(model), Config(["mine"], {"mine": file}, batch_size=4))
    task = zeroshot_scoring.local_task(zeroshot_tasks.read_local("mine", Path(file)))
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=copy.deepcopy(model), tokenizer=byte_tokenizer(), batch_size=4),
        tasks=[task],
        task_manager=zeroshot_scoring._manager([]),
        bootstrap_iters=10,
    )
    figures = theirs["results"]["mine"]
    for name, theirs_name in (("accuracy", "acc"), ("acc_norm", "acc_norm")):
        found = metric(ours, name)
        assert found.value == figures[f"{theirs_name},none"]
        assert found.stderr == pytest.approx(figures[f"{theirs_name}_stderr,none"])


def test_the_model_and_its_tokenizer_stay_as_they_were(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    """An untied head stays untied though the config says tied, and no padding token appears."""
    untied = copy.deepcopy(model)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach() * 0.5)
    untied.config.quantization_config = {"quant_method": "nobody knows"}
    before = {name: value.clone() for name, value in untied.state_dict().items()}
    tokenizer = byte_tokenizer()
    file = write(tmp_path / "mine.jsonl", CHOICES)
    result = zeroshot_scoring.run(context(untied, tokenizer), Config(["m"], {"m": file}))
    after = untied.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert untied.config.quantization_config == {"quant_method": "nobody knows"}
    assert tokenizer.pad_token is None
    score = by_hand(untied, "Question: Is it red?\nAnswer:", " yes")[0]
    assert result.samples[0]["loglikelihoods"][0] == pytest.approx(score, rel=1e-4)


def test_limit_progress_and_hashes(model: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", CHOICES)
    seen: list[tuple[int, int, str]] = []

    def score(limit: int | None, name: str = "mine") -> SuiteResult:
        config = Config([name], {name: file}, limit=limit, batch_size=2)
        return zeroshot_scoring.run(
            context(model, progress=lambda *step: seen.append(step)), config
        )

    two = score(2)
    assert metric(two, "accuracy").n == 2
    assert seen[-1][:2] == (5, 5)
    assert all(first[0] <= second[0] for first, second in pairwise(seen))
    assert score(2).inputs == two.inputs != score(3).inputs


def test_lm_eval_draws_no_bars_and_logs_nothing(
    model: LlamaForCausalLM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "mine.jsonl", CHOICES)
    zeroshot_scoring.run(context(model), Config(["m"], {"m": file}))
    output = capfd.readouterr()
    assert output.out == ""
    assert "requests" not in output.err
    assert "it/s" not in output.err


def test_a_task_that_cannot_be_had_fails_alone(
    model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    load = TaskManager.load

    def no_data(self: Any, tasks: Any) -> Any:
        if "piqa" in tasks:
            raise ConnectionError("no route to the hub")
        return load(self, tasks)

    monkeypatch.setattr(TaskManager, "load", no_data)
    mine = write(tmp_path / "mine.jsonl", CHOICES)
    files = {"mine": mine, "gone": str(tmp_path / "gone.jsonl")}
    alone = zeroshot_scoring.run(context(model), Config([], {"mine": mine}))
    result = zeroshot_scoring.run(context(model), Config(["piqa", "no_such_task"], files))
    assert result.metrics == alone.metrics
    assert result.failures.keys() == {"piqa", "no_such_task", "gone"}
    assert "data of task piqa (dataset baber/piqa)" in result.failures["piqa"]
    assert "there is no zero-shot task 'no_such_task'" in result.failures["no_such_task"]
    assert "gone.jsonl; correct the path" in result.failures["gone"]
    with pytest.raises(TaskError, match=r"data of task piqa .*ConnectionError"):
        zeroshot_scoring.run(context(model), Config(["piqa"]))
