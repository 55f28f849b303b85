"""Zero-shot scores against log-likelihoods by hand, plain lm-eval and real benchmark files."""

import copy
import json
import math
import statistics
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.config import ZeroShotConfig
from harness.record import Metric
from harness.suites import zeroshot
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.zeroshot_tasks import TaskError


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


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
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
    fields: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer or byte_tokenizer(),
        "load_twin": lambda: model,
        "quantized": False,
        "kernel": "reference",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "data_dir": None,
        "progress": lambda done, total, what: None,
    }
    return SuiteContext(**fields | more)


@torch.no_grad()
def by_hand(model: Any, prompt: str, target: str) -> tuple[float, bool]:
    """Log-likelihood of a target in float64, and whether it is the greedy continuation."""
    ids = byte_tokenizer().encode(prompt + target)
    count = len(target.encode())
    scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)[-count - 1 : -1]
    likelihood = sum(float(row[token]) for row, token in zip(scores, ids[-count:], strict=True))
    return likelihood, scores.argmax(-1).tolist() == ids[-count:]


class Parrot:
    """A model that expects a space after anything, and a q after a space."""

    device = torch.device("cpu")
    config = LlamaConfig(vocab_size=257, max_position_embeddings=64)

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        space, q = byte_tokenizer().encode(" q")[1:]
        expected = torch.where(input_ids == space, q, space)
        logits = 3 * torch.nn.functional.one_hot(expected, 257).float()
        return SimpleNamespace(logits=logits + torch.linspace(0, 1, 257))


def write(file: Path, items: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(file)


def metric(result: SuiteResult, name: str) -> Metric:
    (found,) = (metric for metric in result.metrics if metric.name == name)
    return found


CHOICES = [
    {"query": "Question: Is it red?\n", "choices": ["yes", "no", "perhaps"], "gold": 1},
    {"query": "Question: Where?", "choices": ["in the big box", "out"], "gold": 0},
    {"query": "Question: Who?", "choices": ["Tom", "Anna and Bob"], "gold": 1},
    {"query": "Question: How many were there?", "choices": ["two", "4", "none"], "gold": 2},
    {"query": "Question: When?", "choices": ["at night", "soon"], "gold": 1},
]


def test_multiple_choice_is_scored_as_in_the_paper(model: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", CHOICES)
    result = zeroshot.run(context(model), ZeroShotConfig(["mine"], {"mine": file}, batch_size=3))
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


def test_last_words_are_scored_by_greedy_match_and_perplexity(tmp_path: Path) -> None:
    items = [
        {"context": "The box is", "continuation": "q"},
        {"context": "The bag is", "continuation": "z"},
        {"context": "The cup is", "continuation": "qu"},
    ]
    file = write(tmp_path / "words.jsonl", items)
    result = zeroshot.run(context(Parrot()), ZeroShotConfig([], {"words": file}, batch_size=2))
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


def test_options_may_stand_in_the_context(model: LlamaForCausalLM, tmp_path: Path) -> None:
    items = [
        {"context_options": ["Tom said so Tom", "Tom said so Ann"], "continuation": c, "gold": g}
        for c, g in (("ran.", 0), ("hid.", 1), ("fell.", 1))
    ]
    file = write(tmp_path / "options.jsonl", items)
    result = zeroshot.run(context(model), ZeroShotConfig(["o"], {"o": file}))
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
    ours = zeroshot.run(context(model), ZeroShotConfig(["mine"], {"mine": file}, batch_size=4))
    task = zeroshot.local_task(zeroshot_tasks.read_local("mine", Path(file)))
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=copy.deepcopy(model), tokenizer=byte_tokenizer(), batch_size=4),
        tasks=[task],
        task_manager=zeroshot._manager([]),
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
    result = zeroshot.run(context(untied, tokenizer), ZeroShotConfig(["m"], {"m": file}))
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
        config = ZeroShotConfig([name], {name: file}, limit=limit, batch_size=2)
        return zeroshot.run(context(model, progress=lambda *step: seen.append(step)), config)

    two = score(2)
    assert metric(two, "accuracy").n == 2
    assert seen[-1][:2] == (5, 5)
    assert all(first[0] <= second[0] for first, second in pairwise(seen))
    assert score(2).inputs == two.inputs != score(3).inputs


def test_long_prompts_are_cut_from_the_left_and_counted(
    model: LlamaForCausalLM, tmp_path: Path
) -> None:
    items = [
        {"context": "x" * 100 + "The end of the", "continuation": "day"},
        {"context": "The end of the", "continuation": "day"},
    ]
    file = write(tmp_path / "long.jsonl", items)
    result = zeroshot.run(context(model, context_length=20), ZeroShotConfig(["l"], {"l": file}))
    assert result.metrics[0].notes["truncated"] == "1 of 2 requests, to 20 tokens"
    ids = byte_tokenizer().encode(items[0]["context"] + " day")[-21:]
    scores = model(torch.tensor([ids[:-1]])).logits[0].detach().double().log_softmax(-1)[-4:]
    expected = sum(float(row[i]) for row, i in zip(scores, ids[-4:], strict=True))
    assert result.samples[0]["loglikelihoods"][0] == pytest.approx(expected, rel=1e-4)


def test_a_target_longer_than_the_context_is_named(model: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"context": "a", "continuation": "b" * 30}])
    with pytest.raises(TaskError, match=r"has 31 tokens of its own, but must have 1 to 20"):
        zeroshot.run(context(model, context_length=20), ZeroShotConfig(["l"], {"l": file}))


def test_non_finite_scores_name_the_document(model: LlamaForCausalLM, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[0].self_attn.v_proj.weight[0, 0] = math.inf
    file = write(tmp_path / "mine.jsonl", CHOICES)
    with pytest.raises(TaskError, match=r"continuation of '.*Answer:' no finite likelihood .nan."):
        zeroshot.run(context(broken), ZeroShotConfig(["m"], {"m": file}))


def test_examples_are_refused_where_there_are_none(model: LlamaForCausalLM, tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", CHOICES)
    with pytest.raises(TaskError, match=r"task m .*set suite\.zeroshot\.num_fewshot=0"):
        zeroshot.run(context(model), ZeroShotConfig(["m"], {"m": file}, num_fewshot=2))


def test_a_token_on_the_border_belongs_to_one_side_only(model: LlamaForCausalLM) -> None:
    """A tokenizer whose words end in their space ("box ") joins prompt and target."""
    from tokenizers import Tokenizer, models

    from harness.suites.zeroshot_model import Scorer

    pieces = ["<s>", "the", "▁", "box", "the▁", "box▁", "red", "box▁r", "ed", "."]
    core = Tokenizer(models.WordLevel({p: n for n, p in enumerate(pieces)}, unk_token="."))

    class Words(PreTrainedTokenizerFast):
        """Encodes by the longest piece that fits."""

        def encode(self, text: str, **_: Any) -> list[int]:  # type: ignore[override]
            ids, rest = [0], text.replace(" ", "▁")
            while rest:
                piece = max((p for p in pieces if rest.startswith(p)), key=len, default=".")
                ids.append(pieces.index(piece))
                rest = rest[len(piece) :]
            return ids

    tokenizer = Words(tokenizer_object=core, bos_token="<s>", eos_token="<s>", unk_token=".")
    scorer = Scorer(context(model, tokenizer), 64, 1)
    number = {piece: n for n, piece in enumerate(pieces)}
    # The space belongs to the prompt's last word: the target is the next word alone.
    assert scorer._encode_pair("the", " box") == ([0, number["the▁"]], [number["box"]])
    # One token holds the end of the prompt and the beginning of the target.
    assert scorer._encode_pair("the box", " red") == (
        [0, number["the▁"]],
        [number["box▁r"], number["ed"]],
    )
    assert scorer.shared == 2
    # Nothing is shared: lm-eval's own rule.
    assert scorer._encode_pair("the ", "box") == ([0, number["the▁"]], [number["box"]])


def test_standard_tasks_run_from_their_own_definition(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's arc_easy and arc_challenge, with the download replaced by three rows."""
    import datasets
    from huggingface_hub import constants

    rows = [
        {
            "id": str(n),
            "question": f"What is {n}?",
            "choices": {"text": ["a number", "a cat", "it"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[n],
        }
        for n in range(3)
    ]
    asked: list[tuple[Any, Any]] = []

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        asked.append((path, name))
        split = datasets.Dataset.from_list(rows)
        return datasets.DatasetDict({"train": split, "validation": split, "test": split})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    result = zeroshot.run(context(model), ZeroShotConfig(["ai2_arc"], batch_size=2))
    assert sorted(asked) == [("allenai/ai2_arc", "ARC-Challenge"), ("allenai/ai2_arc", "ARC-Easy")]
    assert {metric.task for metric in result.metrics} == {"arc_easy", "arc_challenge"}
    sample = result.samples[0]
    scores = [
        by_hand(model, "Question: What is 0?\nAnswer:", " " + choice)[0]
        for choice in ("a number", "a cat", "it")
    ]
    assert sample["loglikelihoods"] == pytest.approx(scores, rel=1e-4)
    assert sample["gold"] == 0


def test_a_task_whose_data_cannot_be_had_says_so(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    says = r"data of task piqa \(dataset baber/piqa\) .*suite\.zeroshot\.files\.piqa=<file>"
    with pytest.raises(TaskError, match=says):
        zeroshot.run(context(model), ZeroShotConfig(["piqa"]))


def test_groups_carry_the_error_of_a_mean_over_documents() -> None:
    def part(task: str, value: float, n: int, stderr: float) -> Metric:
        return Metric(
            name="accuracy", task=task, value=value, unit="fraction", n=n, n_unit="documents",
            stderr=stderr, higher_is_better=True,
        )  # fmt: skip

    parts = [part("a", 0.5, 10, 0.1), part("b", 0.8, 30, 0.05), part("other", 0.1, 5, 0.2)]
    results = {
        "group_subtasks": {"top": ["a", "inner"], "inner": ["b"]},
        "results": {"top": {"acc,none": 0.725, "acc_stderr,none": "N/A", "alias": "top"}},
    }
    (found,) = zeroshot._group_metrics("top", results, parts, {})
    assert (found.name, found.task, found.n) == ("accuracy", "top", 40)
    assert found.stderr == pytest.approx(math.hypot(10 * 0.1, 30 * 0.05) / 40)
    results["results"]["top"]["acc,none"] = 0.65  # the mean over tasks: another error
    (found,) = zeroshot._group_metrics("top", results, parts, {})
    assert found.stderr is None


def test_lm_eval_draws_no_bars_and_logs_nothing(
    model: LlamaForCausalLM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "mine.jsonl", CHOICES)
    zeroshot.run(context(model), ZeroShotConfig(["m"], {"m": file}))
    output = capfd.readouterr()
    assert output.out == ""
    assert "requests" not in output.err
    assert "it/s" not in output.err


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("lambada_openai", {"accuracy", "target_perplexity"}),
        ("piqa", {"accuracy", "acc_norm"}),
        ("arc_easy", {"accuracy", "acc_norm"}),
        ("arc_challenge", {"accuracy", "acc_norm"}),
        ("winogrande", {"accuracy"}),
    ],
)
def test_real_benchmarks_run_on_a_real_model(shared: Path, task: str, names: set[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "tinystories-656k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = ZeroShotConfig([task], {task: f"zeroshot/{task}.jsonl"}, limit=12)
    result = zeroshot.run(context(model, tokenizer, data_dir=shared / "data"), config)
    assert {metric.name for metric in result.metrics} == names
    assert all(metric.task == task and metric.n == 12 for metric in result.metrics)
    assert len(result.samples) == 12
    assert all(math.isfinite(s) for sample in result.samples for s in sample["loglikelihoods"])
    accuracy = metric(result, "accuracy")
    assert accuracy.value == statistics.fmean(sample["correct"] for sample in result.samples)
