"""The latency suite: the loop is the model's own generation, the statistics are what they say."""

import gc
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from harness import memory
from harness.config import LatencyConfig
from harness.suites import latency
from harness.suites.base import SuiteContext

VOCABULARY = 97
SPECIAL = [0, 1, 2, 96]
CONFIG = LatencyConfig(prompt_tokens=9, decode_tokens=7, warmup=1, repeats=4)


class Tokenizer:
    all_special_ids = SPECIAL

    def __len__(self) -> int:
        return VOCABULARY


def tiny_opt(seed: int = 0) -> OPTForCausalLM:
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.5,
    )
    return OPTForCausalLM(config).eval()


def make_context(model, twin=None, **changes) -> SuiteContext:
    context = SuiteContext(
        model=model,
        tokenizer=Tokenizer(),
        load_twin=lambda: model if twin is None else twin,
        quantized=twin is not None,
        kernel="reference",
        device="cpu",
        dtype="float32",
        seed=3,
        data_dir=None,
        progress=lambda done, total, what: None,
    )
    return replace(context, **changes)


class Clock:
    """Nanoseconds from a list of durations, as start and end of one step after the other."""

    def __init__(self, milliseconds: list[float]) -> None:
        self.readings, now = [], 0
        for duration in milliseconds:
            self.readings += [now, now + int(duration * 1e6)]
            now += int(duration * 1e6) + 500
        self.readings.reverse()

    def __call__(self) -> int:
        return self.readings.pop()


def by_name(result) -> dict:
    return {metric.name: metric for metric in result.metrics}


def test_decode_loop_gives_the_tokens_of_full_forward_passes() -> None:
    model = tiny_opt()
    prompt = latency.make_prompt(make_context(model), 9)
    with torch.inference_mode():
        generation = latency.generate(model, prompt, 12, latency.host_stopwatch())
        tokens = prompt
        for _ in range(13):  # no cache, every position again
            best = model(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, best], 1)
    assert generation.tokens == tokens[0, 9:].tolist()
    assert len(set(generation.tokens)) > 2  # a model stuck on one token would hide a wrong loop
    assert len(generation.decode_ms) == 12


def test_decode_feeds_one_token_at_a_time_through_the_cache() -> None:
    model, lengths = tiny_opt(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    prompt = latency.make_prompt(make_context(model), 9)
    with torch.inference_mode():
        latency.generate(model, prompt, 3, latency.host_stopwatch())
    assert lengths == [9, 1, 1, 1]


def test_model_and_twin_are_measured_in_turn() -> None:
    calls: list[str] = []
    model, twin = tiny_opt(0), tiny_opt(1)
    for name, each in (("model", model), ("twin", twin)):
        each.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    latency.run(make_context(model, twin), CONFIG)
    steps = 1 + CONFIG.decode_tokens
    warm = 2 * CONFIG.warmup  # prefill and one decode step
    assert calls[: steps + warm] == ["model"] * (steps + warm)  # the memory pass, then warm-up
    assert calls[steps + warm : steps + 2 * warm] == ["twin"] * warm
    order = calls[steps + 2 * warm :: steps]
    assert order == ["model", "twin", "twin", "model"] * 2
    assert len(calls) == steps + 2 * warm + 2 * CONFIG.repeats * steps


def test_figures_are_those_of_the_clock() -> None:
    """Two repeats of prefill + three tokens, model and twin in the order A B, B A."""
    config = LatencyConfig(prompt_tokens=8, decode_tokens=3, warmup=0, repeats=2)
    clock = Clock([10, 1, 2, 3, 20, 4, 4, 4, 30, 4, 5, 6, 12, 2, 3, 13])
    result = latency.run(
        make_context(tiny_opt(), tiny_opt(1)), config, latency.host_stopwatch(clock)
    )
    figures = by_name(result)
    assert clock.readings == []
    assert figures["prefill_ms"].value == pytest.approx(11)  # of 10, 12
    assert figures["decode_ms"].value == pytest.approx(2.5)  # of 1 2 3 2 3 13
    assert figures["decode_ms"].quantiles == pytest.approx({"p10": 1.5, "p50": 2.5, "p90": 8.0})
    assert figures["decode_ms"].n == 6
    assert figures["decode_tokens_per_s"].value == pytest.approx(400)
    assert figures["prefill_tokens_per_s"].value == pytest.approx(8 / 0.011)
    assert figures["twin_prefill_ms"].value == pytest.approx(25)
    assert figures["twin_decode_ms"].value == pytest.approx(4)
    # repeat medians 2/4 and 3/5
    assert figures["decode_time_ratio"].value == pytest.approx(0.55)
    assert figures["decode_time_ratio"].quantiles["p90"] == pytest.approx(0.59)
    assert figures["prefill_time_ratio"].value == pytest.approx((10 / 20 + 12 / 30) / 2)
    assert result.samples[0] == {
        "model": "model",
        "repeat": 0,
        "prefill_ms": 10.0,
        "decode_ms": [1.0, 2.0, 3.0],
    }


def test_a_real_run_has_all_samples_and_ordered_quantiles() -> None:
    config = replace(CONFIG, decode_tokens=26)
    result = latency.run(make_context(tiny_opt(), tiny_opt(1)), config)
    figures = by_name(result)
    assert len(result.samples) == 2 * config.repeats
    for name in ("decode_ms", "twin_decode_ms"):
        assert figures[name].n == 104
        quantiles = figures[name].quantiles
        assert 0 < quantiles["p10"] <= quantiles["p50"] <= quantiles["p90"] <= quantiles["p99"]
        assert figures[name].value == quantiles["p50"]
    assert "p99" not in figures["prefill_ms"].quantiles  # of four repeats
    assert figures["decode_ms"].notes["kernel"] == "reference"
    assert figures["twin_decode_ms"].notes["kernel"] == "torch"
    assert figures["peak_memory_bytes"].value > figures["weight_bytes"].value
    assert figures["decode_ms"].task == "prompt9_decode26"


def test_full_precision_is_measured_alone() -> None:
    def refuse():
        raise AssertionError("the twin of a full-precision model is itself")

    result = latency.run(make_context(tiny_opt(), load_twin=refuse), CONFIG)
    assert not [name for name in by_name(result) if "twin" in name or "ratio" in name]


def test_prompt_is_seeded_and_has_no_special_token() -> None:
    context = make_context(tiny_opt())
    prompt = latency.make_prompt(context, 4000)
    assert prompt.shape == (1, 4000)
    assert set(prompt[0].tolist()) == set(range(VOCABULARY)) - set(SPECIAL)
    assert torch.equal(prompt, latency.make_prompt(context, 4000))
    assert not torch.equal(prompt, latency.make_prompt(replace(context, seed=4), 4000))
    run = latency.run(context, CONFIG).inputs
    assert run == latency.run(context, CONFIG).inputs
    assert run != latency.run(replace(context, seed=4), CONFIG).inputs


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt_tokens": 60, "decode_tokens": 5}, "65 positions, but the model has 64; lower"),
        ({"repeats": 0}, "suite.latency.repeats=0 measures nothing; use at least 1"),
        ({"decode_tokens": 0}, "suite.latency.decode_tokens=0"),
        ({"warmup": -1}, "suite.latency.warmup=-1"),
    ],
)
def test_impossible_settings_are_refused(changes, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        latency.run(make_context(tiny_opt()), replace(CONFIG, **changes))


def test_longest_allowed_run_fits_the_model() -> None:
    latency.run(make_context(tiny_opt()), LatencyConfig(60, 4, warmup=0, repeats=1))


def test_gpt2_bounds_its_positions_under_another_name() -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    ).eval()
    with pytest.raises(ValueError, match="the model has 16"):
        latency.run(make_context(model), LatencyConfig(16, 1, 0, 1))
    assert latency.run(make_context(model), LatencyConfig(12, 4, 0, 1)).metrics


def test_a_model_without_a_cache_is_named() -> None:
    class Forgetful(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return SimpleNamespace(logits=torch.zeros(1, 1, 5), past_key_values=None)

    with pytest.raises(RuntimeError, match="Forgetful returns no past_key_values"):
        latency.generate(Forgetful(), torch.zeros(1, 3).long(), 1, latency.host_stopwatch())


def test_garbage_collection_rests_while_timing_and_comes_back() -> None:
    seen: list[bool] = []
    model = tiny_opt()

    def stopwatch(step):
        seen.append(gc.isenabled())
        return step(), 1.0

    def explode(step):
        raise KeyboardInterrupt

    latency.run(make_context(model), CONFIG, stopwatch)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        latency.run(make_context(model), CONFIG, explode)
    assert gc.isenabled()


def test_weight_bytes_count_tied_tensors_once_and_buffers_too() -> None:
    model = tiny_opt()
    model.register_buffer("packed", torch.zeros(10, dtype=torch.int32))
    parameters = sum(parameter.numel() * 4 for parameter in model.parameters())  # already unique
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert memory.weight_bytes(model) == parameters + 40
    tables = (VOCABULARY + 66) * 32 * 4  # OPT has two positions more than it can use
    assert memory.embedding_bytes(model) == tables
    assert memory.bytes_per_token(model) == parameters + 40 - 66 * 32 * 4


def test_bandwidth_is_bytes_over_time() -> None:
    model = tiny_opt()
    result = latency.run(make_context(model), CONFIG, lambda step: (step(), 2.0))
    expected = memory.bytes_per_token(model) / 0.002 / 1e9
    assert by_name(result)["decode_bandwidth"].value == pytest.approx(expected)


def test_memory_peak_sees_what_a_step_allocates() -> None:
    size = 64 * 2**20

    def allocate() -> None:
        torch.ones(size, dtype=torch.uint8)

    peak = memory.measure_peak(allocate, "cpu")
    assert peak.bytes > size
    if peak.working_bytes is not None:
        assert 0.9 * size < peak.working_bytes < 1.5 * size
        quiet = memory.measure_peak(lambda: None, "cpu")
        assert quiet.working_bytes < 0.2 * size  # the earlier peak is forgotten
