"""The latency suite: the loop is the model's own generation, the statistics are what they say."""

import gc
from dataclasses import replace

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from harness.suites import latency_metrics, timing_tokens
from harness.suites.base import SuiteContext
from harness.suites.energy import Counter, Meter
from harness.suites.latency import Config
from harness.suites.timing import host_stopwatch
from quant.decode import caches
from quant.decode.caches import DynamicDecoder
from quant.decode.choose import make_decoder
from quant.errors import NotEnoughMemory
from quant.measure import roofline
from tests.harness.suites.suite_context import suite_context

VOCABULARY = 97
SPECIAL = [0, 1, 2, 96]
CONFIG = Config(prompt_tokens=9, decode_tokens=7, warmup=1, repeats=4)


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


def make_context(model, baseline=None, **changes) -> SuiteContext:
    fields = {
        "tokenizer": Tokenizer(),
        "load_baseline": lambda: model if baseline is None else baseline,
        "quantized": baseline is not None,
        "seed": 3,
    }
    return suite_context(model, **fields | changes)


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch) -> None:
    """The real one takes half a second and has a test of its own."""
    monkeypatch.setattr(timing_tokens, "read_bandwidth", lambda device: 5e10)


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


def test_generation_is_the_decoders_tokens() -> None:
    """quant's tests hold every decoder against full forward passes."""
    model = tiny_opt()
    prompt = timing_tokens.make_prompt(make_context(model), 9)
    with torch.inference_mode():
        generation = timing_tokens.generate(
            make_decoder(model, prompt, 12), prompt, 12, host_stopwatch()
        )
        tokens = prompt
        for _ in range(13):  # no cache, every position again
            best = model(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, best], 1)
    assert generation.tokens == tokens[0, 9:].tolist()
    assert len(set(generation.tokens)) > 2  # a model stuck on one token would hide a wrong loop
    assert len(generation.decode_ms) == 12


@pytest.mark.parametrize(("fused", "mode"), [(True, caches.FUSED), (False, caches.STATIC)])
def test_the_embedded_model_is_decoded_as_with_a_dynamic_cache(fused, mode) -> None:
    from transformers import AutoModelForCausalLM

    from harness.embedded import MODEL_DIR

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    prompt = timing_tokens.make_prompt(make_context(model, tokenizer=None), 16)
    decoder, dynamic = make_decoder(model, prompt, 12, fused=fused), DynamicDecoder(model)
    assert decoder.mode == mode
    with torch.inference_mode():
        answers = [
            timing_tokens.generate(d, prompt, 12, host_stopwatch()) for d in (decoder, dynamic)
        ]
    assert answers[0].tokens == answers[1].tokens
    torch.testing.assert_close(decoder.logits, dynamic.logits, rtol=1e-4, atol=1e-4)


def test_model_and_baseline_are_measured_in_turn() -> None:
    calls: list[str] = []
    model, baseline = tiny_opt(0), tiny_opt(1)
    for name, each in (("model", model), ("baseline", baseline)):
        each.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    timing_tokens.run(make_context(model, baseline), CONFIG)
    steps = 1 + CONFIG.decode_tokens
    check = 4  # prefill and one step with either cache
    warm = 2 * CONFIG.warmup  # prefill and one decode step
    ready = ["model"] * (check + steps)  # the memory pass
    ready += ["model"] * 3 + ["baseline"] * check  # workspace and cache, then the baseline
    ready += ["model"] * warm + ["baseline"] * warm
    assert calls[: len(ready)] == ready
    order = calls[len(ready) :: steps]
    assert order == ["model", "baseline", "baseline", "model"] * 2
    assert len(calls) == len(ready) + 2 * CONFIG.repeats * steps


def test_figures_are_those_of_the_clock() -> None:
    """Two repeats of prefill + three tokens, model and baseline in the order A B, B A."""
    config = Config(prompt_tokens=8, decode_tokens=3, warmup=0, repeats=2)
    clock = Clock([10, 1, 2, 3, 20, 4, 4, 4, 30, 4, 5, 6, 12, 2, 3, 13])
    result = timing_tokens.run(make_context(tiny_opt(), tiny_opt(1)), config, host_stopwatch(clock))
    figures = by_name(result)
    assert clock.readings == []
    assert figures["prefill_ms"].value == pytest.approx(11)  # of 10, 12
    assert figures["decode_ms"].value == pytest.approx(2.5)  # of 1 2 3 2 3 13
    assert figures["decode_ms"].quantiles == pytest.approx({"p10": 1.5, "p50": 2.5, "p90": 8.0})
    assert figures["decode_ms"].n == 6
    assert figures["decode_tokens_per_s"].value == pytest.approx(400)
    assert figures["prefill_tokens_per_s"].value == pytest.approx(8 / 0.011)
    assert figures["baseline_prefill_ms"].value == pytest.approx(25)
    assert figures["baseline_decode_ms"].value == pytest.approx(4)
    # repeat medians 2, 3 of the model and 4, 5 of its baseline
    assert figures["decode_speedup"].value == pytest.approx((4 / 2 + 5 / 3) / 2)
    assert figures["decode_speedup"].higher_is_better
    assert figures["prefill_speedup"].value == pytest.approx((20 / 10 + 30 / 12) / 2)
    assert result.samples[0] == {
        "model": "model",
        "repeat": 0,
        "prefill_ms": 10.0,
        "decode_ms": [1.0, 2.0, 3.0],
    }


def test_a_real_run_has_all_samples_and_ordered_quantiles() -> None:
    config = replace(CONFIG, decode_tokens=26)
    result = timing_tokens.run(make_context(tiny_opt(), tiny_opt(1)), config)
    figures = by_name(result)
    assert len(result.samples) == 2 * config.repeats
    for name in ("decode_ms", "baseline_decode_ms"):
        assert figures[name].n == 104
        quantiles = figures[name].quantiles
        assert 0 < quantiles["p10"] <= quantiles["p50"] <= quantiles["p90"] <= quantiles["p99"]
        assert figures[name].value == quantiles["p50"]
    assert "p99" not in figures["prefill_ms"].quantiles  # of four repeats
    assert figures["decode_ms"].notes["kernel"] == "reference"
    assert figures["baseline_decode_ms"].notes["kernel"] == "torch"
    assert figures["peak_memory_bytes"].value > figures["weight_bytes"].value
    assert figures["decode_ms"].task == "prompt9_decode26"


def test_full_precision_is_measured_alone() -> None:
    def refuse():
        raise AssertionError("the baseline of a full-precision model is itself")

    result = timing_tokens.run(make_context(tiny_opt(), load_baseline=refuse), CONFIG)
    assert not [name for name in by_name(result) if "baseline" in name or "ratio" in name]


def test_prompt_is_seeded_and_has_no_special_token() -> None:
    context = make_context(tiny_opt())
    prompt = timing_tokens.make_prompt(context, 4000)
    assert prompt.shape == (1, 4000)
    assert set(prompt[0].tolist()) == set(range(VOCABULARY)) - set(SPECIAL)
    assert torch.equal(prompt, timing_tokens.make_prompt(context, 4000))
    assert not torch.equal(prompt, timing_tokens.make_prompt(replace(context, seed=4), 4000))
    run = timing_tokens.run(context, CONFIG).inputs
    assert run == timing_tokens.run(context, CONFIG).inputs
    assert run != timing_tokens.run(replace(context, seed=4), CONFIG).inputs


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
        timing_tokens.run(make_context(tiny_opt()), replace(CONFIG, **changes))


def test_longest_allowed_run_fits_the_model() -> None:
    timing_tokens.run(make_context(tiny_opt()), Config(60, 4, warmup=0, repeats=1))


def test_gpt2_bounds_its_positions_under_another_name() -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    ).eval()
    with pytest.raises(ValueError, match="the model has 16"):
        timing_tokens.run(make_context(model), Config(16, 1, 0, 1))
    assert timing_tokens.run(make_context(model), Config(12, 4, 0, 1)).metrics


def test_a_baseline_that_does_not_fit_is_said_and_the_model_is_measured() -> None:
    def refuse():
        raise NotEnoughMemory("OPTForCausalLM needs 122.40 GiB")

    def exhaust():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore")

    for load, said in ((refuse, "needs 122.40 GiB"), (exhaust, "(CUDA out of memory. Tried 2")):
        context = make_context(tiny_opt(), quantized=True, load_baseline=load)
        figures = by_name(timing_tokens.run(context, CONFIG))
        assert not [name for name in figures if "baseline" in name or "speedup" in name]
        assert said in figures["decode_ms"].notes["full-precision baseline"]


def test_garbage_collection_rests_while_timing_and_comes_back() -> None:
    seen: list[bool] = []
    model = tiny_opt()

    def stopwatch(step):
        seen.append(gc.isenabled())
        return step(), 1.0

    def explode(step):
        raise KeyboardInterrupt

    timing_tokens.run(make_context(model), CONFIG, stopwatch)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(KeyboardInterrupt):
        timing_tokens.run(make_context(model), CONFIG, explode)
    assert gc.isenabled()


def test_weight_bytes_count_tied_tensors_once_and_buffers_too() -> None:
    model = tiny_opt()
    model.register_buffer("packed", torch.zeros(10, dtype=torch.int32))
    parameters = sum(parameter.numel() * 4 for parameter in model.parameters())  # already unique
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert roofline.weight_bytes(model) == parameters + 40
    tables = (VOCABULARY + 66) * 32 * 4  # OPT has two positions more than it can use
    assert roofline.embedding_bytes(model) == tables
    assert roofline.weight_bytes_per_token(model) == parameters + 40 - 66 * 32 * 4


def test_roofline_is_bytes_over_time_and_bandwidth() -> None:
    model = tiny_opt()
    result = timing_tokens.run(
        make_context(model), CONFIG, lambda step: (step(), 2.0), bandwidth=lambda device: 5e9
    )
    figures = by_name(result)
    buffers = 16  # 9 + 7 positions, kept for the whole run
    cache = 2 * 2 * buffers * 32 * 4
    layers = 2 * (4 * (32 + 32) + 2 * (32 + 64)) + 32 + VOCABULARY
    moved = roofline.weight_bytes_per_token(model) + cache + layers * 4
    assert figures["bytes_per_token"].value == moved
    assert figures["bytes_per_token"].notes["KV cache"] == str(cache)
    assert figures["decode_bandwidth"].value == pytest.approx(moved / 0.002 / 1e9)
    assert figures["roofline_share"].value == pytest.approx(moved / 0.002 / 5e9)
    assert figures["read_bandwidth"].value == 5.0
    assert figures["decode_ms"].notes["decode mode"] == (
        "static cache, eager (no fused step: a head is 8 wide, no multiple of 16)"
    )


def test_a_fused_step_says_what_it_went_to() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # a head stored as bfloat16 is read as such: half of its bytes
        head = model.lm_head.weight
        head.copy_(head.bfloat16().float())
    result = timing_tokens.run(make_context(model), CONFIG)
    figures = by_name(result)
    assert figures["decode_ms"].notes["decode mode"] == caches.FUSED
    parts = [figures[f"decode_{name}_ms"] for name in ("kernels", "attention", "rest")]
    assert all(each.value > 0 and each.n == figures["decode_ms"].n for each in parts)
    assert sum(each.value for each in parts) < 3 * figures["decode_ms"].value
    read = int(figures["bytes_per_token"].notes["weights"])
    assert read == roofline.weight_bytes_per_token(model) - head.nbytes // 2
    # Each matrix's inputs and outputs of the prompt are there at once, and the head in 16 bits.
    rows = 9 * (3 * 32 + 2 * 16 + 3 * 48)
    assert figures["workspace_bytes"].value > rows * 4 + head.nbytes // 2
    positions = CONFIG.prompt_tokens + (CONFIG.decode_tokens + 1) / 2
    assert int(figures["bytes_per_token"].notes["KV cache"]) == round(positions * 2 * 2 * 16 * 4)


def test_a_growing_cache_counts_with_its_mean_length() -> None:
    model, config = tiny_opt(), Config(prompt_tokens=4, decode_tokens=3)
    decoder = DynamicDecoder(model)
    prompt = timing_tokens.make_prompt(make_context(model), 4)
    timing_tokens.generate(decoder, prompt, 3, host_stopwatch())
    subject = timing_tokens.Subject(model, decoder, timing_tokens.Timings())
    moved = latency_metrics.token_bytes(subject, config, "float32")
    assert moved.kv == 6 * 2 * 2 * 32 * 4  # steps see 5, 6 and 7 positions


def test_the_bandwidth_of_this_machine_is_plausible() -> None:
    assert 1e9 < roofline.read_bandwidth("cpu", turns=2) < 1e13


def test_sizes_are_those_of_the_model_and_its_cache() -> None:
    model = tiny_opt()
    figures = by_name(timing_tokens.run(make_context(model), CONFIG))
    weights = (VOCABULARY + 66) * 32 + 2 * (4 * 32 * 33 + 32 * 65 + 64 * 33 + 4 * 32) + 2 * 32
    assert figures["weight_count"].value == weights  # norms and biases too, the tied head once
    bits = figures["model_bits_per_weight"]
    assert (bits.value, bits.n) == (32.0, weights)  # OPT has no buffers
    cache = figures["cache_bytes_per_position"]
    assert (cache.task, cache.value) == ("all positions", 2 * 2 * 32 * 4)
    assert cache.notes == {"positions": "64"}
    assert figures["cache_state_bytes"].value == 0
    attention = 9 * 32 * 4 * 3  # queries, keys and values of the prompt are there at once
    assert attention < figures["workspace_bytes"].value < 50 * attention
    assert figures["workspace_bytes"].task == "prompt9_decode7"


def test_packed_layers_count_as_the_weights_that_they_stand_for() -> None:
    from quant.linear import QuantLinear
    from quant.scheme import Scheme
    from tests.oracles.random_weights import random_weight

    model = tiny_opt()
    before = roofline.weight_count(model)
    for block in model.model.decoder.layers:
        full = block.fc1
        packed = QuantLinear.from_quantized(random_weight(Scheme(3), 64, 32), bias=full.bias)
        block.fc1 = packed
    assert roofline.weight_count(model) == before


class Joules:
    """A counter that adds the given joules from one reading to the next."""

    def __init__(self, *added: float) -> None:
        self.total, self.added = 0, list(added)

    def __call__(self) -> int:
        found = self.total
        self.total += round(1e6 * self.added.pop(0)) if self.added else 0
        return found


def meter(counter: Joules, updates: float = 1e-3) -> Meter:
    return Meter("RAPL (package-0)", updates, (Counter(counter, 1e-6),))


def test_joules_a_token_are_those_of_the_decode_steps() -> None:
    """Readings before and after the steps of each repeat; between them lies what is not counted."""
    config = Config(prompt_tokens=8, decode_tokens=4, warmup=0, repeats=3)
    counter = Joules(8.0, 99.0, 12.0, 99.0, 40.0)
    result = timing_tokens.run(
        make_context(tiny_opt()), config, lambda step: (step(), 5.0), meter=meter(counter)
    )
    energy = by_name(result)["joules_per_token"]
    assert energy.value == pytest.approx(3.0)  # of 2, 3 and 10
    assert (energy.unit, energy.n, energy.n_unit) == ("J", 3, "repeats")
    assert "RAPL (package-0), idle power and other processes included" in energy.notes["measured"]
    assert "energy" not in by_name(result)["decode_ms"].notes


def test_energy_that_is_not_measured_is_absent_with_its_reason() -> None:
    def figures(found):
        return by_name(
            timing_tokens.run(
                make_context(tiny_opt(), tiny_opt(1)),
                CONFIG,
                lambda step: (step(), 2.0),
                meter=found,
            )
        )

    for found, reason in (
        ("no counters here", "no counters here"),
        (meter(Joules(), updates=0.1), "tokens were decoded for 0.014 s, and RAPL (package-0)"),
        (Meter("RAPL", 1e-3, (Counter(lambda: int("gone"), 1e-6),)), "RAPL could not be read"),
    ):
        made = figures(found)
        assert not [name for name in made if "joules" in name]
        for name in ("decode_ms", "baseline_decode_ms"):
            assert made[name].notes["energy"].startswith(f"not measured: {reason}")
