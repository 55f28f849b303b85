"""Every log-likelihood of the zero-shot suite against lm-eval alone, on the same documents.

The suite shares forward passes, computes few positions of the logits and uses faster products;
lm-eval with its own tasks and model does none of it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.suites import zeroshot_scoring
from harness.suites.zeroshot import Config
from tests.harness.suites.byte_model import write
from tests.harness.suites.suite_context import suite_context
from tests.oracles import lm_eval_alone

DOCUMENTS = 30  # of each task, on the real model
CLOSE = 1e-4  # nats
# Of a log-likelihood, for other libraries of products: a long choice of 300 nats is a sum over 100
# tokens, each of whose logits float32 gives to about 1e-5.
ROUNDING = 1e-6


def differences(
    kernel: str, model: Any, tokenizer: Any, files: Mapping[str, Path], documents: int
) -> dict[str, list[tuple[float, float]]]:
    """Compare the suite with lm-eval on the first documents of each task's file.

    Returns by task, of every choice, the difference of both log-likelihoods and the size of it,
    nats; asserts that accuracies are equal.
    """
    found = zeroshot_scoring.run(
        suite_context(model, tokenizer, kernel=kernel),
        Config([], {task: str(file) for task, file in files.items()}, documents, batch_size=8),
    )
    theirs = lm_eval_alone.evaluate(
        model, tokenizer, {task: first(file, documents) for task, file in files.items()}
    )
    compared = {}
    for task, expected in theirs.items():
        ours = [each["loglikelihoods"] for each in found.samples if each["task"] == task]
        assert len(ours) == len(expected.loglikelihoods) == documents
        compared[task] = [
            (abs(one - other), abs(other))
            for each, reference in zip(ours, expected.loglikelihoods, strict=True)
            for one, other in zip(each, reference, strict=True)
        ]
        figures = {each.name: each.value for each in found.metrics if each.task == task}
        for name, value in expected.scores.items():
            ours_name = zeroshot_scoring.NAMES.get(name, name)
            exact = name.startswith("acc")
            assert figures[ours_name] == (value if exact else pytest.approx(value, rel=1e-5)), name
    return compared


def first(file: Path, documents: int) -> Sequence[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(documents), strict=False)]


def test_the_embedded_model_scores_as_lm_eval_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.data import told
    from harness.embedded import MODEL_DIR

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    choices = [
        {
            "query": f"Question: {item['query'].strip()}",
            "choices": [choice.strip() for choice in item["choices"]],
            "gold": item["gold"],
        }
        for item in told.choice_items(12)
    ]
    pairs = [{**item, "choices": item["choices"][:2], "gold": item["gold"] % 2} for item in choices]
    last = [
        {**item, "continuation": item["continuation"].strip()} for item in told.last_word_items(12)
    ]
    items = {"lambada_openai": last, "piqa": pairs, "arc_easy": choices}
    files = {task: Path(write(tmp_path / f"{task}.jsonl", each)) for task, each in items.items()}
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    for task, compared in differences("cpu", model, tokenizer, files, 12).items():
        assert max(compared)[0] < CLOSE, task


@pytest.mark.long
@pytest.mark.realdata
@pytest.mark.parametrize("kernel", ["reference", "cpu"])
def test_a_real_model_scores_as_lm_eval_does(shared: Path, smollm2: Path, kernel: str) -> None:
    """With torch's products within CLOSE; with faster ones long choices differ by rounding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    files = {task: shared / "data" / "zeroshot" / f"{task}.jsonl" for task in lm_eval_alone.FILES}
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    rounding = 0.0 if kernel == "reference" else ROUNDING
    for task, compared in differences(kernel, model, tokenizer, files, DOCUMENTS).items():
        print(f"{kernel}, {task}: largest difference {max(compared)[0]:.1e} nats")
        assert all(found < CLOSE + rounding * size for found, size in compared), task
