"""Suites on a model that is spread over several devices have the figures of one device."""

from pathlib import Path
from typing import Any

from harness.suites import divergence, perplexity, zeroshot
from tests.harness.suites import byte_model
from tests.harness.suites.byte_model import CHOICES, write
from tests.quant.spread.several import names, several, spread_loaded

LENGTHS = {"prompt_tokens": 7, "decode_tokens": 4}


def model() -> Any:
    return byte_model.byte_model()


def context(found: Any, devices: tuple[str, ...] = (), **more: Any) -> Any:
    home = devices[0] if devices else "cpu"
    return byte_model.context(found, device=home, devices=devices, **more)


def test_what_suites_measure_is_that_of_one_device(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The tall ship went to sea. " * 30)
    tasks = {"mine": write(tmp_path / "tasks.jsonl", CHOICES)}

    def figures(devices: tuple[str, ...]) -> dict[str, Any]:
        def made() -> Any:
            found = model()
            if devices:
                spread_loaded(found, len(devices))
            return found

        given = context(made(), devices, context_length=32, load_baseline=made)
        texts = {"text": str(text)}
        found = {
            "perplexity": perplexity.run(given, perplexity.Config(["text"], texts, max_windows=3)),
            "divergence": divergence.run(given, divergence.Config(["text"], texts, max_windows=2)),
            "zeroshot": zeroshot.run(given, zeroshot.Config(["mine"], tasks)),
        }
        return {
            f"{name} {each.task} {each.name}": each.value
            for name, result in found.items()
            for each in result.metrics
        }

    whole = figures(())
    with several():
        assert figures(names(2)) == whole
