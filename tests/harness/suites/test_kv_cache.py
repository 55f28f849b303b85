"""Key-value caches: figures against decoding token by token, what is refused, table and plots."""

import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.config.schema import ModelConfig
from harness.errors import ConfigError
from harness.suites import kv_cache, kv_cache_run, perplexity
from harness.suites.base import Facts, require_figures
from harness.suites.kv_cache import Config
from quant.kv.base import KvCacheError
from quant.kv.support import scheme_names, why_not
from tests.harness.suites.suite_context import Ascii, suite_context
from tests.oracles.textbook_kv_cache import HeavyLayer, RoundedLayer, Rule, decode

LENGTH = 48
SHAPE = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": LENGTH}  # fmt: skip


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=128, intermediate_size=24, num_hidden_layers=2, **SHAPE)
    made = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    return made


def config(text: str) -> Config:
    options = {"per_token": {"bits": 2}, "h2o": {"recent": 0.25}}
    schemes = ["per_token", "h2o"]
    return Config(["text"], {"text": text}, bits=[7.0], tokens=2 * LENGTH, schemes=schemes,
                  options=options)  # fmt: skip


@pytest.fixture
def measured(text):
    under_test, settings = model(), config(text)
    found = kv_cache.run(suite_context(under_test, Ascii(), dtype="float64"), settings)
    require_figures(kv_cache.SUITE, found)
    return under_test, found


def test_figures_are_those_of_decoding_token_by_token(measured, text) -> None:
    under_test, found = measured
    windows = torch.tensor(Ascii()(Path(text).read_text())["input_ids"])[: 2 * LENGTH].view(
        2, LENGTH
    )
    # 2 bits in groups of 8 take 6; 5 tokens of 16 bits beside 43 of these are 7.04, 4 are 6.83.
    rules = [Rule(2, 8, "token", 4)]
    # 18 tokens of 18 bits are 6.75 for each of 48; 4 or 5 of them are the newest.
    caches = {
        "RTN per token": lambda: RoundedLayer(rules, rules),
        "H2O": lambda: HeavyLayer(18, round(0.25 * 18)),
    }
    with torch.no_grad():
        full = [under_test(input_ids=each[None]).logits[0].log_softmax(-1) for each in windows]
    under_test.set_attn_implementation("eager")
    values = {(each.name, each.task): each for each in found.metrics}
    where = f"text@{LENGTH}"
    loss_of_full = [
        -p[:-1].gather(1, w[1:, None])[:, 0] for p, w in zip(full, windows, strict=True)
    ]
    exact = values["perplexity", f"{where} full"]
    assert exact.value == pytest.approx(math.exp(float(torch.cat(loss_of_full).mean())), rel=1e-6)
    for label, layer in caches.items():
        task = f"{where} 7 bits {label}"
        losses, divergences, agrees = [], [], []
        for window, p in zip(windows, full, strict=True):
            q = decode(under_test, window, layer)[0].log_softmax(-1)[:-1]
            losses.append(-q.gather(1, window[1:, None])[:, 0])
            divergences.append((p[:-1].exp() * (p[:-1] - q)).sum(-1))
            agrees.append((p[:-1].argmax(-1) == q.argmax(-1)).double())
        expected = {
            "perplexity": math.exp(float(torch.cat(losses).mean())),
            "kl_divergence": float(torch.cat(divergences).mean()),
            "top1_agreement": float(torch.cat(agrees).mean()),
        }
        for name, value in expected.items():
            assert values[name, task].value == pytest.approx(value, rel=1e-4), (label, name)
        assert values["kl_divergence", task].value > 1e-4
        above = torch.stack(losses) - torch.stack(loss_of_full)
        for first, last in ((1, 16), (16, 32), (32, 48)):
            point = values["kv_excess_nll_by_position", f"{task}:{first}-{last - 1}"]
            inside = above[:, first - 1 : last - 1]
            assert point.value == pytest.approx(float(inside.mean()), abs=1e-6)
            assert point.stderr == pytest.approx(
                float(inside.mean(1).std() / math.sqrt(2)), abs=1e-6
            )
            assert point.notes["position"] == f"{(first + last - 1) / 2:g}"
            kl = values["kv_kl_by_position", f"{task}:{first}-{last - 1}"]
            inside = torch.stack(divergences)[:, first - 1 : last - 1]
            assert kl.value == pytest.approx(float(inside.mean()), rel=1e-4, abs=1e-9)
    bits = {name: values["bits_per_number", f"{where} 7 bits {name}"] for name in caches}
    assert bits["RTN per token"].value == pytest.approx((44 * 6 + 4 * 16) / 48)
    assert bits["H2O"].value == pytest.approx(18 * 18 / 48)
    size = values["cache_bytes", f"{where} 7 bits H2O"]
    assert size.n == 2 * 2 * 8 * LENGTH  # layers, keys and values, channels
    assert size.value == pytest.approx(18 * 18 / 48 / 8 * size.n)
    assert values["bits_per_number", f"{where} full"].value == 64
    assert size.notes["cache"].startswith("simulated")


def facts(**more) -> Facts:
    return Facts(**{"key": "suite.kv_cache", "model": "tiny", "shape": SHAPE} | more)


REFUSED = [
    ({"bits": []}, {}, "suite.kv_cache.bits is empty: give a budget, such as [4]."),
    ({"bits": [16.0]}, {}, "suite.kv_cache.bits=16 is no budget"),
    ({"bits": [3.0]}, {}, "kv scheme per_token cannot keep to 3 bits a number at 48 tokens"),
    ({"tokens": 0}, {}, "suite.kv_cache.tokens=0 is too small"),
    ({"schemes": []}, {}, "suite.kv_cache.schemes is empty"),
    ({"schemes": ["h2o"]}, {}, "options.per_token has no effect, because per_token is not among"),
    ({"schemes": ["per_token", "h2o", "h2o"]}, {}, "names a scheme twice"),
    ({"schemes": ["kvi"]}, {}, "there is no kv scheme kvi (did you mean kivi?): choose from h2o"),
    ({"schemes": ["no.such"], "options": {}}, {}, "there is no module no.such"),
    ({"options": {"h2o": {"share": 1}}}, {}, "options.h2o.share=1 is not an option of h2o"),
    ({"options": {"h2o": {"recent": 2.0}}}, {}, "options.h2o.recent=2.0 is no share"),
    ({"lengths": [96]}, {}, "lengths=96 cannot be: use 16 to 48, the context of model=tiny."),
    ({"lengths": [8]}, {}, "suite.kv_cache.lengths=8 cannot be"),
    ({}, {"max_position_embeddings": None}, "states no context: set suite.kv_cache.lengths=[2048]"),
    ({}, {"sliding_window": 8}, "model=tiny has a sliding window (sliding_window=8), not a stan"),
    ({"schemes": ["hadamard"], "options": {}, "bits": [12.0]}, {"head_dim": 12},
     "kv scheme hadamard needs heads whose width is a power of two, but keys have 12 channels"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "shape", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_the_plan(settings, shape, message, text) -> None:
    given = Config(**{**vars(config(text)), **settings})
    with pytest.raises(ConfigError) as raised:
        kv_cache.SUITE.check(given, facts(shape={**SHAPE, **shape}))
    said = str(raised.value)
    assert message in said
    assert said.startswith("suite.kv_cache")
    assert said.endswith(".")
    assert "\n" not in said


def test_documents_are_refused_and_joined_by_default(text) -> None:
    given = Config(**{**vars(config(text)), "protocols": ["embedded"], "paths": {}})
    with pytest.raises(ConfigError, match="windows of unequal length"):
        kv_cache.SUITE.check(given, facts())
    empty = Config(schemes=["h2o"])
    beside = perplexity.Config(["wikitext2"], {"wikitext2": text, "ptb": "other"})
    own = ModelConfig(protocols=["embedded", "wikitext2"])
    found = kv_cache.SUITE.complete(empty, own, [beside])
    assert found.protocols == ["embedded-joined", "wikitext2"]
    assert found.paths == {"wikitext2": text}


def test_what_works_is_accepted(text) -> None:
    kv_cache.SUITE.check(config(text), facts())
    kv_cache.SUITE.check(config(text), facts(shape=None))  # the model is not here yet


WITHOUT = {
    "mamba": "a state in place of keys and values (state_size=16)",
    "jamba": "a state in place of keys and values (mamba_d_state=16)",
    "recurrent_gemma": "a state in place of keys and values (block_types=",
    "lfm2": "a state in place of keys and values (conv_L_cache=3)",
    "qwen3_next": "a state in place of keys and values (linear_num_value_heads=32)",
    "deepseek_v3": "latents in place of keys and values (kv_lora_rank=512)",
    "gemma2": "layers of sliding_attention (layer_types)",
    "mistral": "a sliding window (sliding_window=4096)",
    "gpt_neo": "attention to chunks or windows (window_size=256)",
    "rwkv": "a state in place of keys and values (attention_hidden_size=4096)",
}
WITH = [
    "llama",
    "opt",
    "gpt2",
    "gpt_neox",
    "qwen2",
    "qwen3",
    "phi",
    "bloom",
    "gpt_bigcode",
    "gemma",
]


@pytest.mark.parametrize("kind", [*WITHOUT, *WITH])
def test_models_without_a_standard_cache_are_told_by_their_config(kind) -> None:
    from transformers import AutoConfig

    found = why_not(AutoConfig.for_model(kind).to_dict())
    assert (found or "").startswith(WITHOUT.get(kind, "")), found
    assert (found is None) == (kind in WITH)


def test_a_model_that_the_plan_let_pass_is_refused_by_name(text) -> None:
    from tests.quant.architectures import tiny_model

    falcon = tiny_model("falcon", vocab_size=128)
    settings = Config(["text"], {"text": text}, [32], [7.0], 64, ["h2o"])
    with pytest.raises(KvCacheError, match="FalconForCausalLM: attention of 3 of its 3 layers"):
        kv_cache_run.run(suite_context(falcon, Ascii()), settings, kv_cache.chosen(settings))


def test_what_keys_say(text) -> None:
    found = kv_cache.SUITE.semantics(config(text))
    assert found["schemes"] == {
        "per_token": {"version": 1, "bits": 2, "group": None},
        "h2o": {"version": 1, "recent": 0.25},
    }
    assert found["paths"] == {"text": "text.txt"}
    assert found["bits"] == [7.0]
    assert "options" not in found
    assert set(kv_cache.SUITE.inputs(config(text), facts())) == {"text text"}


def test_all_schemes_are_in_the_default() -> None:
    from omegaconf import OmegaConf

    from harness.config.help import conf_dir

    default = OmegaConf.load(conf_dir() / "suite" / "kv_cache.yaml").kv_cache
    assert sorted(default.schemes) == scheme_names()
