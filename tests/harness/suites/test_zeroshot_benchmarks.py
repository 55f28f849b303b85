"""The tasks and groups that lm-eval defines, on made-up rows and on real benchmark files."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.records.record import Metric
from harness.suites import zeroshot_scoring
from harness.suites.zeroshot import Config
from harness.suites.zeroshot_tasks import TaskError
from tests.harness.suites.byte_model import by_hand, byte_model, context, metric


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return byte_model()


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
    result = zeroshot_scoring.run(context(model), Config(["ai2_arc"], batch_size=2))
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
        zeroshot_scoring.run(context(model), Config(["piqa"]))


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
    (found,) = zeroshot_scoring._group_metrics("top", results, parts, {})
    assert (found.name, found.task, found.n) == ("accuracy", "top", 40)
    assert found.stderr == pytest.approx(math.hypot(10 * 0.1, 30 * 0.05) / 40)
    results["results"]["top"]["acc,none"] = 0.65  # the mean over tasks: another error
    (found,) = zeroshot_scoring._group_metrics("top", results, parts, {})
    assert found.stderr is None


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
    config = Config([task], {task: f"zeroshot/{task}.jsonl"}, limit=12)
    result = zeroshot_scoring.run(context(model, tokenizer, data_dir=shared / "data"), config)
    assert {metric.name for metric in result.metrics} == names
    assert all(metric.task == task and metric.n == 12 for metric in result.metrics)
    assert len(result.samples) == 12
    assert all(math.isfinite(s) for sample in result.samples for s in sample["loglikelihoods"])
    accuracy = metric(result, "accuracy")
    assert accuracy.value == statistics.fmean(sample["correct"] for sample in result.samples)
