"""Local documents as tasks of lm-eval, which formats and scores them."""

from __future__ import annotations

from typing import Any

from harness.suites.zeroshot_tasks import LocalTask

GENERATED_TOKENS = 32  # at most, of an answer that is generated


def local_task(task: LocalTask) -> Any:
    """Return an lm-eval task over local documents; examples in prompts are others of them."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    def metric(name: str, aggregation: str = "mean", higher: bool = True) -> dict[str, Any]:
        return {"metric": name, "aggregation": aggregation, "higher_is_better": higher}

    forms: dict[str, dict[str, Any]] = {
        "continuation": {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": "continuation",
            "target_delimiter": "",  # the continuation begins with its space
            "metric_list": [metric("acc"), metric("perplexity", "perplexity", False)],
        },
        "choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "query",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [metric("acc"), metric("acc_norm")],
        },
        # lm-eval's form for one continuation after several contexts (WinoGrande).
        "contexts": {
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_choice": "options",
            "doc_to_target": "continuation",
            "metric_list": [metric("acc")],
        },
        "answer": {
            "output_type": "generate_until",
            "doc_to_text": "query",
            "doc_to_target": "answer",
            "generation_kwargs": {
                "until": ["\n"],
                "max_gen_toks": GENERATED_TOKENS,
                "do_sample": False,
            },
            "filter_list": [
                {
                    "name": "none",
                    "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
                }
            ],
            "metric_list": [metric("exact_match")],
        },
    }
    data = {"test": Dataset.from_list(task.documents)}
    return ConfigurableTask(
        config={
            "task": task.name,
            "custom_dataset": lambda **_: data,
            "test_split": "test",
            "fewshot_split": "test",  # lm-eval leaves the document itself out
            "metadata": {"version": 1.0},
            **forms[task.kind],
        }
    )
