"""What a suite is given, for a model that is measured as it is on the CPU."""

from typing import Any

from harness.suites.base import SuiteContext


class Ascii:
    """A tokenizer whose ids are ASCII codes, BOS 1 first."""

    bos_token_id = 1

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1, *text.encode()]}


def suite_context(model: Any, tokenizer: Any = None, **more: Any) -> SuiteContext:
    """In full precision, its own baseline; `more` are fields of SuiteContext."""
    fields: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "load_baseline": lambda: model,
        "quantized": False,
        "kernel": "reference",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "data_dir": None,
        "progress": lambda done, total, what: None,
    }
    return SuiteContext(**fields | more)
