"""The throughput suite: every sequence gets the answer that it gets alone, and times add up."""

import itertools

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from harness.errors import ConfigError
from harness.suites import timing_loads
from harness.suites.base import Facts
from harness.suites.throughput import SUITE, Config, check, positions, table
from harness.suites.timing_loads import Flight, serve
from tests.harness.suites.test_timing_tokens import VOCABULARY, make_context, tiny_opt

CONFIG = Config(
    prompt_tokens=9, decode_tokens=5, batches=[1, 3], requests=[1, 2, 4], repeats=2, rounds=2
)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bloom() -> BloomForCausalLM:
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.5
    )
    return BloomForCausalLM(config).eval()


def gemma() -> Gemma3ForCausalLM:
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).eval()


@torch.no_grad()
def alone(model: torch.nn.Module, prompt: torch.Tensor, tokens: int) -> list[int]:
    """Greedy, every position again, without a cache."""
    found = prompt
    for _ in range(tokens):
        best = model(input_ids=found, use_cache=False).logits[:, -1:].argmax(-1)
        found = torch.cat([found, best], 1)
    return found[0, prompt.shape[1] :].tolist()


def ticking() -> itertools.count:
    """A clock that is one second later whenever it is read."""
    return itertools.count()


@pytest.mark.parametrize("make", [llama, bloom, tiny_opt], ids=["llama", "bloom", "opt"])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_requests_get_the_answers_that_they_get_alone(make, count: int) -> None:
    """Of unequal lengths, so that they join and leave one by one, shorter or longer than others."""
    model = make()
    generator = torch.Generator().manual_seed(1)
    sizes = [5, 9, 2, 14, 1, 7, 3]
    prompts = [torch.randint(3, 95, (1, size), generator=generator) for size in sizes]
    lengths = [4, 1, 6, 2, 9, 3, 5]
    ticks = ticking()
    with torch.inference_mode():
        times = serve(Flight(model), prompts, lengths, count, lambda: float(next(ticks)))
    expected = [
        alone(model, prompt, length) for prompt, length in zip(prompts, lengths, strict=True)
    ]
    assert times.answers == expected
    assert len({tuple(each) for each in expected}) > 3
    assert times.tokens == sum(lengths)
    assert len(times.first_ms) == 7
    assert len(times.token_ms) == sum(lengths) - 7


def test_batches_get_the_answers_that_they_get_alone() -> None:
    model = llama()
    context = make_context(model)
    with torch.inference_mode():
        times = timing_loads.batch_times(context, CONFIG, 3, lambda: 0.0)
    prompts = timing_loads._prompts(context, 9, 3)
    assert times.answers == [alone(model, each[None], 6) for each in prompts]


def test_times_are_those_of_the_clock() -> None:
    """A reading a second. Two requests at once: both prompts, then steps of the two together."""
    ticks = ticking()
    prompts = [torch.tensor([[5, 6]]), torch.tensor([[7, 8, 9]]), torch.tensor([[4]])]
    with torch.inference_mode():
        times = serve(Flight(llama()), prompts, [2, 3, 2], 2, lambda: float(next(ticks)))
    # start 0; first tokens at 1 and 2; a step ends at 3, the first is done, and a place is free;
    # the third's first token at 4, a step of both ends at 5
    assert times.first_ms == [1000, 2000, 1000]
    assert times.token_ms == [2000, 1000, 2000, 1000]
    assert (times.tokens, times.seconds) == (7, 5)


def test_a_load_has_its_figures_by_name() -> None:
    ticks = ticking()
    result = timing_loads.run(make_context(tiny_opt()), CONFIG, lambda: float(next(ticks)))
    found = {(each.task, each.name): each for each in result.metrics}
    assert {task for task, _ in found} == {
        *("batch1", "batch3"), *("requests1", "requests2", "requests4")
    }  # fmt: skip
    assert found["batch3", "tokens_per_s"].value == 3 * 6 / 6  # six readings a repeat
    assert found["batch3", "first_token_ms"].value == 1000
    assert found["batch3", "token_ms"].n == 2 * 5
    assert found["requests4", "first_token_ms"].n == 4 * 2
    assert found["requests4", "token_p95_ms"].value >= found["requests4", "token_ms"].value
    assert found["batch1", "tokens_per_s"].notes["loop"] == "harness"


def test_a_cache_that_cannot_be_padded_is_said_and_batches_are_measured() -> None:
    result = timing_loads.run(make_context(gemma()), CONFIG)
    assert {each.task for each in result.metrics} == {"batch1", "batch3"}
    said = result.metrics[0].notes["not measured"]
    assert "requests4 (its cache has layers of DynamicSlidingWindowLayer" in said


def test_a_batch_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = timing_loads.batch_times

    def narrow(context, config, size, clock):
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore")
        return whole(context, config, size, clock)

    monkeypatch.setattr(timing_loads, "batch_times", narrow)
    result = timing_loads.run(make_context(tiny_opt()), CONFIG)
    assert "batch3" not in {each.task for each in result.metrics}
    assert "batch3 (CUDA out of memory. Tried 2 GiB.)" in result.metrics[0].notes["not measured"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batches": [4, 0]}, "batches=0 is too small"),
        ({"requests": [2, 2]}, "names a load twice"),
        ({"batches": [], "requests": []}, "neither batches nor requests"),
        ({"rounds": 0}, "rounds=0 is too small"),
        ({"prompt_tokens": 600}, "has a context of 512"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, sentence: str) -> None:
    facts = Facts("suite.throughput", "m", {"max_position_embeddings": 512})
    with pytest.raises(ConfigError, match=sentence):
        check(Config(**changes), facts)


def test_a_context_that_is_too_short_is_refused_when_it_is_known() -> None:
    with pytest.raises(ValueError, match="the model has 64 positions"):
        timing_loads.run(make_context(tiny_opt()), Config(prompt_tokens=60, decode_tokens=5))


def test_the_table_has_a_line_for_every_load_in_order() -> None:
    from harness.report import from_records
    from harness.report.render import to_markdown
    from harness.report.rows import read_rows
    from tests.harness.report.conftest import make_record

    metrics = timing_loads.run(make_context(tiny_opt()), CONFIG).metrics
    records = [make_record("rtn", "w4", SUITE.name, metrics=metrics)]
    found = table("m", read_rows(from_records(records)).rows)
    assert found is not None
    loads = [(line[3].text, line[4].text) for line in found.rows]
    assert loads == [
        ("batch", "1"), ("batch", "3"), ("requests", "1"), ("requests", "2"), ("requests", "4")
    ]  # fmt: skip
    assert "no serving engine" in to_markdown(found)
    assert table("m", []) is None
    spread = [each.model_copy(update={"notes": each.notes | {"devices": "3"}}) for each in metrics]
    records = [make_record("rtn", "w4", SUITE.name, metrics=spread)]
    again = table("m", read_rows(from_records(records)).rows)
    assert again is not None
    over = again.footnotes.index("over 3 devices, the harness's own loop") + 1
    assert all(over in line[3].marks for line in again.rows)
    assert "over 3 devices, the harness's own loop" not in found.footnotes
    assert positions(CONFIG) == 4 * 14
