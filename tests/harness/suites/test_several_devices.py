"""Suites on a model that is spread over several devices have the figures of one device."""

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.suites import (
    divergence,
    latency,
    perplexity,
    throughput,
    timing_loads,
    timing_tokens,
    zeroshot,
)
from harness.suites.timing import host_stopwatch, synchronized
from tests.harness.suites import byte_model
from tests.harness.suites.byte_model import CHOICES, write
from tests.quant.spread.several import names, several, spread_loaded

LENGTHS = {"prompt_tokens": 7, "decode_tokens": 4}


def model() -> Any:
    return byte_model.byte_model()


def llama() -> LlamaForCausalLM:
    """3 blocks, a head of its own, and tokens that do not repeat."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=False, pad_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


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


def test_throughput_gives_the_same_answers() -> None:
    count, at_once = 3, 2
    config = throughput.Config(**LENGTHS, batches=[2], requests=[2], repeats=1, rounds=2)
    whole, clock = context(llama()), itertools.count().__next__
    with several(), torch.inference_mode():
        found = llama()
        spread_loaded(found, count)
        spread = context(found, names(count))
        for measure in (timing_loads.batch_times, timing_loads.request_times):
            answers = measure(spread, config, at_once, clock).answers
            assert measure(whole, config, at_once, clock).answers == answers
        made = timing_loads.run(spread, config, clock)
    notes = made.metrics[0].notes
    assert (notes["devices"], notes["loop"]) == (str(count), "harness")
    assert notes["clock"] == f"perf_counter_ns, {count} devices waited for"


def test_latency_decodes_the_same_and_says_how() -> None:
    config = latency.Config(**LENGTHS, warmup=0, repeats=1)
    with several(), torch.inference_mode():
        found = llama()
        spread_loaded(found, 2)
        given = context(found, names(2))
        result = timing_tokens.run(given, config, host_stopwatch(), lambda _: 1e9, "no meter")
    decode = next(each for each in result.metrics if each.name == "decode_ms")
    assert decode.notes["devices"] == "2"
    assert decode.notes["decode mode"] == (
        "dynamic cache (no fused step, static cache or CUDA graph over 2 devices)"
    )
    whole = next(
        each.value
        for each in timing_tokens.run(
            context(llama()), config, host_stopwatch(), lambda _: 1e9, "no meter"
        ).metrics
        if each.name == "weight_bytes"
    )
    assert next(each.value for each in result.metrics if each.name == "weight_bytes") == whole


def test_a_clock_waits_for_every_device_before_it_is_read() -> None:
    heard: list[str] = []
    clock = synchronized(("cuda:0", "cuda:2"), lambda: len(heard), heard.append)
    assert (clock(), clock()) == (2, 4)
    assert heard == ["cuda:0", "cuda:2", "cuda:0", "cuda:2"]
