"""KL divergence against a textbook sum, and the parity of a broken kernel is seen."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from harness.suites import comparing, distributions
from harness.suites.base import SuiteContext
from harness.suites.distributions import DivergenceError, compare
from harness.suites.divergence import Config
from quant import QuantizationConfig, Scheme, load, quantize_model, save
from quant.linear import QuantLinear
from quant.solvers import rtn
from tests.harness.suites.suite_context import Ascii, suite_context

VOCABULARY = 128


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
        bos_token_id=1, eos_token_id=2, initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # far from uniform, so that mistakes show
    return model


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = tiny(), tmp_path_factory.mktemp("artifact") / "q"
    result = quantize_model(model, [], QuantizationConfig(rtn.SOLVER, Scheme(3, 32)))
    save(folder, model, result.weights, method={"name": "rtn"})
    return folder


def context(model: Any, artifact: Path | None = None, **more: Any) -> SuiteContext:
    fields: dict[str, Any] = {
        "load_baseline": tiny,
        "quantized": artifact is not None,
        "kernel": "cpu",
        "context_length": 20,
    }
    if artifact is not None:
        fields["load_reference"] = lambda: load(artifact, kernel="reference", dtype=torch.float32)
    return suite_context(model, Ascii(), **fields | more)


def packed(artifact: Path) -> Any:
    return load(artifact, dtype=torch.float32)


def run(context: SuiteContext, text: str, windows: int = 5):
    config = Config(["text"], {"text": text}, max_windows=windows)
    result = comparing.run(context, config)
    return {metric.name: metric for metric in result.metrics}, result


def textbook(first: list[float], second: list[float]) -> float:
    """KL of two softmaxes, term by term with the math module."""

    def softmax(values: list[float]) -> list[float]:
        top = max(values)
        powers = [math.exp(value - top) for value in values]
        return [power / math.fsum(powers) for power in powers]

    terms = zip(softmax(first), softmax(second), strict=True)
    return math.fsum(p * math.log(p / q) for p, q in terms)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(2, 40), st.floats(0.01, 12))
def test_kl_is_the_textbook_sum(seed, positions, vocabulary, size) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(positions, vocabulary, generator=generator) * size for _ in range(2)
    )
    found = compare(first, second)
    expected = [textbook(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert found.divergence.dtype == torch.float64
    assert found.divergence.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert found.flipped.tolist() == [
        bool(a.argmax() != b.argmax()) for a, b in zip(first, second, strict=True)
    ]
    assert found.confidence.tolist() == pytest.approx(
        [float(each.double().softmax(-1).max()) for each in first], rel=1e-12
    )
    assert compare(first, first).divergence.abs().max() == 0
    assert (found.divergence > -1e-13).all()


def test_a_constant_added_to_logits_changes_nothing() -> None:
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(
        compare(first, second).divergence,
        compare(first + 3, second - 2).divergence,
        rtol=0,
        atol=1e-6,
    )


def test_rows_that_do_not_fit_into_the_cache_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.randn(11, 50), torch.randn(11, 50)
    expected = compare(first, second)
    monkeypatch.setattr(distributions, "CACHED_LOGITS", 120)  # two rows
    found = compare(first, second)
    torch.testing.assert_close(found.divergence, expected.divergence, rtol=1e-14, atol=0)
    assert found.flipped.tolist() == expected.flipped.tolist()
    assert found.confidence.tolist() == expected.confidence.tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(value) -> None:
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    second[1, 2] = value
    with pytest.raises(DivergenceError, match="1 of 3 positions have no finite divergence"):
        compare(first, second)


def test_other_vocabularies_cannot_be_compared() -> None:
    with pytest.raises(DivergenceError, match="different vocabularies"):
        compare(torch.randn(3, 4), torch.randn(3, 5))


def test_a_quantized_model_and_its_kernel(artifact: Path, text: str) -> None:
    model = packed(artifact)
    figures, result = run(context(model, artifact), text)
    windows = torch.tensor([1, *Path(text).read_bytes()])[:100].view(5, 20)
    with torch.inference_mode():
        full = tiny()(input_ids=windows).logits.double()
        quantized = model(input_ids=windows).logits.double()
    each = [
        [textbook(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True)]
        for one, other in zip(full, quantized, strict=True)
    ]
    values = [value for window in each for value in window]
    kl = figures["kl_divergence"]
    assert kl.value == pytest.approx(sum(values) / 100, rel=1e-5)
    assert kl.value > 0.01  # three bits are seen
    means = torch.tensor([sum(window) / 20 for window in each])
    assert kl.stderr == pytest.approx(float(means.std()) / 5**0.5, rel=1e-4)
    assert kl.quantiles["p50"] == pytest.approx(float(torch.tensor(values).median()), rel=0.1)
    assert figures["kl_divergence_max"].value == pytest.approx(max(values), rel=1e-4)
    high = float(numpy.quantile(values, 0.999))
    assert figures["kl_divergence_p999"].value == pytest.approx(high, rel=1e-4)
    assert "kl_sampling" not in figures  # a vocabulary of 128 is compared as it is
    flipped = (full.argmax(-1) != quantized.argmax(-1)).double()
    assert figures["top1_flip_rate"].value == pytest.approx(float(flipped.mean()))
    assert figures["top1_flip_rate"].value > 0
    parity = figures["kernel_kl"]
    assert 0 <= parity.value <= figures["kernel_kl_max"].value < 1e-9
    assert parity.notes["parity"] == "holds"
    assert figures["kernel_top1_agreement"].value == 1.0
    assert figures["kl_floor"].value < 1e-10
    assert len(result.samples) == 5 + 5 + 5 + 1
    assert set(result.inputs) == {"tokens:text", "text:text"}


def test_positions_stand_in_the_interval_of_their_confidence(artifact: Path, text: str) -> None:
    model = packed(artifact)
    figures, _ = run(context(model, artifact), text)
    windows = torch.tensor([1, *Path(text).read_bytes()])[:100].view(5, 20)
    with torch.inference_mode():
        full = tiny()(input_ids=windows).logits.double()
        quantized = model(input_ids=windows).logits.double()
    groups: dict[str, list[tuple[float, bool]]] = {}
    for one, other in zip(full.view(100, -1), quantized.view(100, -1), strict=True):
        sure = 100 * float(one.softmax(-1).max())
        low, high = next((a, b) for a, b in pairwise((0, 25, 50, 75, 90, 101)) if a <= sure < b)
        flipped = bool(one.argmax() != other.argmax())
        at = f"confidence_{low}_{min(high, 100)}"
        groups.setdefault(at, []).append((textbook(one.tolist(), other.tolist()), flipped))
    assert len(groups) >= 3
    names = {name.removeprefix("kl_") for name in figures if name.startswith("kl_confidence")}
    assert names == set(groups)
    for name, found in groups.items():
        assert figures[f"kl_{name}"].n == figures[f"flips_{name}"].n == len(found)
        mean = math.fsum(value for value, _ in found) / len(found)
        assert figures[f"kl_{name}"].value == pytest.approx(mean, rel=1e-4)
        share = sum(flipped for _, flipped in found) / len(found)
        assert figures[f"flips_{name}"].value == pytest.approx(share)


def test_a_wrong_scale_in_the_kernels_layout_breaks_the_parity(artifact: Path, text: str) -> None:
    model = packed(artifact)
    layer = next(module for module in model.modules() if isinstance(module, QuantLinear))
    for name in ("tile_scales", "scales"):
        held = layer._buffers.get(name)
        if held is not None:
            held.view(-1)[0] *= 1.5
    figures, _ = run(context(model, artifact), text)
    parity = figures["kernel_kl"]
    assert parity.value > comparing.PARITY_BOUND["float32"]
    assert parity.notes["parity"] == "BROKEN: mean above 1e-09 nat"
    assert parity.notes["bound"] == "1e-09 nat for float32"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bounds_of_16_bits_hold_and_a_wrong_scale_does_not(
    artifact: Path, text: str, dtype: str
) -> None:
    kind = getattr(torch, dtype)
    model = load(artifact, dtype=kind)
    sixteen = replace(
        context(model, artifact),
        dtype=dtype,
        load_baseline=lambda: tiny().to(kind),
        load_reference=lambda: load(artifact, kernel="reference", dtype=kind),
    )
    figures, _ = run(sixteen, text)
    assert 0 <= figures["kernel_kl"].value < comparing.PARITY_BOUND[dtype]
    layer = next(module for module in model.modules() if isinstance(module, QuantLinear))
    for name in ("tile_scales", "scales"):
        if layer._buffers.get(name) is not None:
            layer._buffers[name].mul_(1.5)
    figures, _ = run(sixteen, text)
    assert "BROKEN" in figures["kernel_kl"].notes["parity"]


def test_a_full_precision_model_has_a_noise_floor_alone(text: str) -> None:
    figures, _ = run(context(tiny()), text)
    noise = {"kl_noise", "kl_noise_p999", "kl_noise_max", "noise_flip_rate"}
    assert set(figures) == {"kl_floor", *noise}
    assert abs(figures["kl_floor"].value) < 1e-10
    assert figures["kl_noise"].value > 1e-6
    assert figures["kl_noise"].n == 100


def test_progress_counts_every_pass(artifact: Path, text: str) -> None:
    seen = []
    base = context(packed(artifact), artifact)
    run(replace(base, progress=lambda done, total, what: seen.append((done, total))), text)
    ours = [*range(1, 6), 10, *range(11, 16)]  # comparing, five of noise at once, the kernel
    assert seen == [(n, 15) for n in ours]


@pytest.mark.parametrize(("windows_kept", "passes"), [(5, 5), (2, 8), (0, 10)])
def test_logits_that_fit_are_computed_once_for_both_comparisons(
    artifact: Path, text: str, monkeypatch: pytest.MonkeyPatch, windows_kept: int, passes: int
) -> None:
    model, seen = packed(artifact), []
    expected = {
        name: figure.value for name, figure in run(context(model, artifact), text)[0].items()
    }
    model.register_forward_hook(lambda *_: seen.append(1))
    monkeypatch.setattr(comparing, "KEPT_BYTES", windows_kept * 20 * VOCABULARY * 4)
    found, _ = run(context(model, artifact), text)
    assert len(seen) == passes
    assert {name: figure.value for name, figure in found.items()} == expected


def test_the_reference_of_a_model_that_has_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="this model is not quantized"):
        run(context(tiny(), quantized=True), text)
