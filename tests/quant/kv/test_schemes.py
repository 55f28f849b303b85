"""What cannot be: options, budgets and models that are refused, each in one sentence."""

import subprocess
import sys

import pytest
import torch

from quant.kv.attention import look, using
from quant.kv.base import CHECKED, KvCacheError, Shape
from quant.kv.schemes import h2o, hadamard, keyformer, kivi, per_channel, per_token, staircase
from quant.kv.stepped import Stepped
from tests.quant.architectures import VOCABULARY, tiny_model

WIDE = Shape(64, 64)

OPTIONS = [
    (lambda: per_token.Options(bits=5), "bits=5 is no width of a code; use 8, 4, 3 or 2."),
    (lambda: per_token.Options(group=1), "group=1 is too small"),
    (lambda: kivi.Options(residual=64), "residual=64 needs a group that divides it; use group=32"),
    (
        lambda: kivi.Options(group=32, residual=48),
        "residual=48 is no multiple of group=32; use one",
    ),
    (lambda: staircase.Options(bits=(4, 8)), "bits=[4, 8] do not fall"),
    (lambda: staircase.Options(bits=(6,)), "bits=[6] are no widths of codes"),
    (lambda: staircase.Options(thresholds=(1, 2)), "are not as many as bits=[8, 4, 2]"),
    (lambda: staircase.Options(thresholds=(9, 2, 30)), "do not rise"),
    (lambda: staircase.Options(ratio=0.5), "ratio=0.5 is less than 1"),
    (lambda: h2o.Options(recent=1.0), "recent=1.0 is no share of the tokens"),
    (lambda: keyformer.Options(first=0.0), "first=0.0 is no temperature"),
]


@pytest.mark.parametrize(("make", "message"), OPTIONS)
def test_options_that_cannot_be(make, message) -> None:
    with pytest.raises(ValueError, match=r"use|leaves|give") as raised:
        make()
    assert message in str(raised.value)


BUDGETS = [
    (per_token, per_token.Options(), 2.2, 8192, "takes 2.50 at least (2 bits, group 64, newest 0"),
    (per_token, per_token.Options(bits=4), 4.2, 8192, "takes 4.50 at least (4 bits"),
    (per_channel, per_channel.Options(), 4.0, 64, "cannot keep to 4 bits a number at 64 tokens"),
    (hadamard, hadamard.Options(), 2.0, 8192, "kv scheme hadamard cannot keep to 2 bits"),
    (kivi, kivi.Options(), 4.0, 190, "at least (2 bits, group 32, residual 32); raise suite.kv_c"),
    (kivi, kivi.Options(group=32, residual=2048), 4.0, 8192, "residual 2048); raise"),
    (staircase, staircase.Options(), 2.4, 8192, "takes 2.50 at least (16/8/4/2 bits"),
    (staircase, staircase.Options(thresholds=(4096, 5000, 8192)), 4.0, 8192,
     "use suite.kv_cache.options.staircase.thresholds=[], which solves them."),
    (h2o, h2o.Options(), 0.1, 64, "(two tokens)"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "options", "budget", "length", "message"), BUDGETS)
def test_budgets_that_cannot_be_met(module, options, budget, length, message) -> None:
    with pytest.raises(KvCacheError) as raised:
        module.solve(options, WIDE, length, budget)
    said = str(raised.value)
    assert message in said
    assert said.endswith(".")
    assert "\n" not in said


def test_widths_that_cannot_be() -> None:
    with pytest.raises(KvCacheError, match="power of two, but keys have 80 channels: leave"):
        hadamard.solve(hadamard.Options(), Shape(80, 64), 8192, 4.0)
    with pytest.raises(KvCacheError, match="groups of 48 do not divide the 64 channels"):
        per_token.solve(per_token.Options(group=48), WIDE, 8192, 4.0)
    cache = per_token.solve(per_token.Options(group=128), WIDE, 8192, 4.0)
    assert cache.keys[0].rounding.group == 64  # a group is never wider than a head


def test_papers_settings_are_kept() -> None:
    """2 bits, groups of 32, a residual of 128: keys hold 64.5 of them in 16 bits on average."""
    options = kivi.Options(bits=2, group=32, residual=128)
    cache = kivi.solve(options, WIDE, 8192, 4.0)
    assert [cache.keys[0].block, cache.values[0].after] == [128, 128]
    expected = 3 + 13 * (63.5 + 128) / 2 / 8192  # the mean over a cycle of the count
    assert cache.bits(8192) == pytest.approx(expected, rel=1e-2)


def test_groups_are_as_small_as_codes_of_most_bits_allow() -> None:
    cache = kivi.solve(kivi.Options(), WIDE, 8192, 4.0)
    assert cache.words[:2] == ["3 bits", "group 64"]  # in groups of 32 they would take 4.0 alone
    cache = per_channel.solve(per_channel.Options(), WIDE, 8192, 5.5)
    assert cache.words[:2] == ["4 bits", "group 32"]


def test_thresholds_that_are_given_are_kept() -> None:
    options = staircase.Options(thresholds=(64, 256, 1024))
    cache = staircase.solve(options, WIDE, 8192, 4.0)
    assert [step.after for step in cache.keys] == [64, 256, 1024]
    assert cache.bits(8192) == (64 * 16 + 192 * 8.5 + 768 * 4.5 + 7168 * 2.5) / 8192
    solved = staircase.solve(staircase.Options(), WIDE, 8192, 4.0)
    first, second, third = (step.after for step in solved.keys)
    assert second == pytest.approx(4 * first, abs=4)
    assert third == pytest.approx(16 * first, abs=16)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("mistral", "MistralAttention: attention with sliding_window=8 cannot be simulated"),
        ("gemma2", "cannot be simulated: leave suite=kv_cache out for this model."),
        ("falcon", "attention of 3 of its 3 layers does not go through transformers' attention"),
    ],
)
def test_models_whose_attention_is_another(family, message) -> None:
    model = tiny_model(family)
    with pytest.raises(KvCacheError) as raised:
        look(model, torch.randint(3, 90, (1, 20)))
    assert message in str(raised.value)
    assert model.config._attn_implementation != "bitsweep_kv_cache"


def test_attention_that_leaves_something_out_is_seen(monkeypatch) -> None:
    model = tiny_model("llama")
    assert look(model, torch.randint(3, VOCABULARY, (1, CHECKED // 8))).difference < 1e-4
    for block in model.model.layers:
        block.self_attn.scaling *= 1.0001
    assert look(model, torch.randint(3, VOCABULARY, (1, 32))).difference < 1e-4
    plain = Stepped.attend

    def without_scaling(self, heads):
        return plain(self, heads) * 1.01

    monkeypatch.setattr(Stepped, "attend", without_scaling)
    with pytest.raises(KvCacheError, match=r"standard deviations from its own, so its attention"):
        look(model, torch.randint(3, VOCABULARY, (1, 32)))


def test_what_is_cached_is_counted() -> None:
    seen = look(tiny_model("llama"), torch.randint(3, 90, (1, 20)))
    assert (seen.shape, seen.numbers) == (Shape(8, 8), 3 * 2 * 16)  # blocks, heads, channels
    assert look(tiny_model("bloom"), torch.randint(3, 90, (1, 20))).shape.biased


def test_numbers_that_overflow_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight.mul_(1e6)
    cache = per_token.solve(per_token.Options(), Shape(8, 8), 32, 8.0)
    with (
        pytest.raises(KvCacheError, match=r"layer 1: a key or value is not finite in float16"),
        torch.inference_mode(),
        using(model, cache),
    ):
        model(input_ids=torch.randint(3, 90, (1, 32)))


def test_a_spec_imports_nothing_heavy() -> None:
    names = ["h2o", "hadamard", "keyformer", "kivi", "per_channel", "per_token", "staircase"]
    lines = "; ".join(f"import quant.kv.schemes.{name}" for name in names)
    code = f"import sys; {lines}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
