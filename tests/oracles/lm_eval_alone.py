"""lm-eval by itself: its own definitions of tasks, its own model, on rows that the caller gives.

Nothing of the harness takes part: neither the tasks over local files, nor the encoding of prompts,
nor the passes that requests share.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# The YAML file of each task in lm-eval.
FILES = {
    "lambada_openai": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
}

Item = Mapping[str, Any]


class Figures(NamedTuple):
    """What lm-eval found for one task.

    loglikelihoods  of every choice of every document, nats.
    scores          lm-eval's figures without their filter: acc, acc_norm, perplexity.
    """

    loglikelihoods: list[list[float]]
    scores: dict[str, float]


def hub_row(task: str, item: Item) -> dict[str, Any]:
    """Return a row as the data set of the hub has it, of a document {context, continuation} or
    {query, choices, gold}."""
    if task == "lambada_openai":
        return {"text": f"{item['context']} {item['continuation']}"}
    question = item["query"].removeprefix("Question: ").removesuffix("\n")
    if task == "piqa":
        first, second = item["choices"]
        return {"goal": question, "sol1": first, "sol2": second, "label": item["gold"]}
    labels = "ABCDEFGH"[: len(item["choices"])]
    return {
        "question": question,
        "choices": {"text": item["choices"], "label": list(labels)},
        "answerKey": labels[item["gold"]],
    }


def evaluate(
    model: Any, tokenizer: Any, documents: Mapping[str, Sequence[Item]], batch_size: int = 8
) -> dict[str, Figures]:
    """Return lm-eval's figures of each task on its documents; `model` is used as it is."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = []
    for task, items in documents.items():
        file = Path(lm_eval.__file__).parent / "tasks" / FILES[task]
        manager = TaskManager(include_path=str(file.parent), include_defaults=False)
        with _data([hub_row(task, item) for item in items]):
            tasks += manager.load([task])["tasks"].values()
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return {task: _figures(found, task) for task in documents}


def rolling(model: Any, tokenizer: Any, text: str, length: int) -> float:
    """Return lm-eval's rolling log-likelihood of a text in windows of `length` tokens, nats."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(
        pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1, max_length=length
    )
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    return float(scorer.loglikelihood_rolling([request], disable_tqdm=True)[0])


def _figures(found: Any, task: str) -> Figures:
    logged = sorted(found["samples"][task], key=lambda one: one["doc_id"])
    likelihoods = [[float(one[0]) for one in each["filtered_resps"]] for each in logged]
    scores = {
        name.removesuffix(",none"): value
        for name, value in found["results"][task].items()
        if name.endswith(",none") and "_stderr" not in name
    }
    return Figures(likelihoods, scores)


@contextmanager
def _data(rows: list[dict[str, Any]]) -> Iterator[None]:
    """Context: `datasets` gives these rows for every split of whatever is asked for."""
    import datasets

    split = datasets.Dataset.from_list(rows)
    whole = datasets.DatasetDict({"train": split, "validation": split, "test": split})
    with mock.patch.object(datasets, "load_dataset", return_value=whole):
        yield
