"""Compressed distributions against textbook sums in float64: no bias, error and bound as stated."""

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.suites import compressed
from harness.suites.compressed import Compressed, compress
from harness.suites.distributions import DivergenceError, compare

VOCABULARY = 300


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "ENTRIES", 16)


def logits(seed: int, positions: int, size: float, vocabulary: int = VOCABULARY) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocabulary, generator=generator) * size


def softmax(values: torch.Tensor) -> numpy.ndarray:
    powers = numpy.exp(values.double().numpy() - values.double().numpy().max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def textbook(first: torch.Tensor, second: torch.Tensor) -> numpy.ndarray:
    p, q = softmax(first), softmax(second)
    return (p * numpy.log(p / q)).sum(-1)


def textbook_threshold(p: numpy.ndarray, entries: int) -> float:
    """t with sum(min(1, p / t)) = entries, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if numpy.minimum(1, p / middle).sum() < entries else (middle, high)
        )
    return high


@pytest.mark.parametrize("size", [0.0, 0.5, 2.0, 6.0])
def test_certain_tokens_and_threshold_are_the_textbook_ones(size: float) -> None:
    first = logits(0, 7, size)
    found = compress(first, 0, 1)
    for row, p in enumerate(softmax(first)):
        kept = found.tokens[row].tolist()
        assert len(set(kept)) == 16
        assert kept == sorted(kept)
        t = textbook_threshold(p, 16)
        assert float(found.threshold[row]) == pytest.approx(t, rel=1e-9)
        certain = set(numpy.flatnonzero(p > t * (1 + 1e-9)))
        assert certain <= set(kept)
        weights = numpy.maximum(p[kept], t)
        assert weights.sum() == pytest.approx(1.0, rel=1e-9)
        assert torch.equal(found.logits[row], first[row, kept])
        exact = math.log(numpy.exp(first[row].double().numpy()).sum())
        assert float(found.normalizer[row]) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_over_all_starts_a_token_is_kept_with_its_probability_and_the_mean_is_exact(
    monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    count = 4000
    one, other = logits(1, 1, size), logits(1, 1, size) + logits(2, 1, 0.3)
    # Instead of random starts all of a fine grid, whose mean is an integral over the starts.
    monkeypatch.setattr(compressed, "_starts", lambda places, seed: (places.double() + 0.5) / count)
    found = compress(one.expand(count, -1), 0, 0)
    p = softmax(one)[0]
    kept = numpy.bincount(found.tokens.flatten().numpy(), minlength=VOCABULARY) / count
    shares = numpy.minimum(1, p / textbook_threshold(p, 16))
    assert numpy.abs(kept - shares).max() <= 2 / count
    estimate = found.compared(slice(0, count), other.expand(count, -1))
    expected = textbook(one, other)[0]
    assert float(estimate.divergence.mean()) == pytest.approx(expected, rel=2e-3)
    assert float(estimate.divergence.std()) > 0.01 * expected  # single samples do differ
    assert estimate.variance is not None
    # Hansen and Hurwitz overstate the variance of a systematic sample, and not by much.
    stated, true = float(estimate.variance.mean()), float(estimate.divergence.var())
    assert 0.8 * true < stated < 3 * true


@pytest.mark.parametrize("noise", [0.03, 0.3, 1.5])
def test_the_mean_of_many_positions_is_within_its_error(noise: float) -> None:
    one = logits(3, 3000, 2.0)
    other = one + logits(4, 3000, noise)
    found = compress(one, 0, 9).compared(slice(0, 3000), other)
    exact = textbook(one, other)
    assert found.variance is not None
    error = math.sqrt(float(found.variance.sum())) / 3000
    assert abs(float(found.divergence.mean()) - exact.mean()) < 3 * error
    assert error < 0.3 * exact.mean()
    whole = compare(one, other)
    assert found.flipped.tolist() == whole.flipped.tolist()
    torch.testing.assert_close(found.confidence, whole.confidence, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.0, 30), st.floats(0.0, 30))
def test_the_lower_bound_holds_for_every_model(seed: int, size: float, other: float) -> None:
    one, second = logits(seed, 5, size), logits(seed + 1, 5, other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "ENTRIES", 16)
        found = compress(one, 0, seed).compared(slice(0, 5), second)
    exact = textbook(one, second)
    assert found.certain is not None
    assert (found.certain.numpy() <= exact * (1 + 1e-9) + 1e-12).all()
    assert (found.certain.numpy() >= -1e-11).all()


@pytest.mark.parametrize("height", [20.0, 60.0, 200.0])
def test_the_lower_bound_holds_for_a_model_that_is_sure(height: float) -> None:
    """What such a model leaves to the tokens that are not certain is lost in rounding."""
    one, other = logits(20, 8, 2.0), logits(21, 8, 1.0)
    other.scatter_(-1, one.argmax(-1, keepdim=True), height)
    found = compress(one, 0, 0).compared(slice(0, 8), other)
    assert found.certain is not None
    whole = compare(one, other).divergence
    assert (found.certain <= whole).all()
    assert (found.certain > 0.1 * whole).all()


def test_the_lower_bound_is_that_of_grouped_tokens() -> None:
    one, other = logits(5, 6, 2.0), logits(6, 6, 2.0)
    found = compress(one, 0, 0).compared(slice(0, 6), other)
    assert found.certain is not None
    for row, (p, q) in enumerate(zip(softmax(one), softmax(other), strict=True)):
        certain = p >= textbook_threshold(p, 16) * (1 + 1e-9)
        r, s = p[~certain].sum(), q[~certain].sum()
        bound = (p * numpy.log(p / q))[certain].sum() + r * math.log(r / s)
        assert float(found.certain[row]) == pytest.approx(bound, rel=1e-9)


def test_the_same_model_has_no_divergence_from_itself() -> None:
    one = logits(7, 20, 3.0)
    found = compress(one, 0, 0).compared(slice(0, 20), one)
    assert found.variance is not None
    assert found.divergence.abs().max() < 1e-14
    assert not found.flipped.any()
    assert float(found.variance.max()) < 1e-28


def test_what_has_no_probability_is_not_needed() -> None:
    one, other = logits(8, 4, 1.0), logits(9, 4, 1.0)
    one[:, 12:] = -1e4  # exp gives 0
    found = compress(one, 0, 0).compared(slice(0, 4), other)
    assert found.divergence.numpy() == pytest.approx(compare(one, other).divergence.numpy())
    one[:, 40:] = -math.inf  # as for tokens that a table is filled up with
    finite = compress(one, 0, 0).compared(slice(0, 4), other)
    assert finite.divergence.tolist() == found.divergence.tolist()


def test_parts_of_a_window_are_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = logits(10, 30, 2.0), logits(11, 30, 2.0)
    whole = compress(one, 0, 5)
    monkeypatch.setattr("harness.suites.distributions.CACHED_LOGITS", 7 * VOCABULARY)
    parts = compressed.together([compress(one[:13], 0, 5), compress(one[13:], 13, 5)])
    assert torch.equal(parts.tokens, whole.tokens)
    some = parts.compared(slice(10, 25), other[10:25])
    every = whole.compared(slice(0, 30), other)
    assert some.divergence.tolist() == pytest.approx(every.divergence[10:25].tolist(), rel=1e-12)
    assert not torch.equal(compress(one, 0, 6).tokens, whole.tokens)  # another window's sample


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 2**16, 2**16 + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_holds_all_of_it(vocabulary: int, dtype: torch.dtype) -> None:
    one = logits(12, 3, 2.0, vocabulary).to(dtype)
    one[:, -1] = 20  # the last token is kept
    made = compress(one, 0, 0)
    found = Compressed.from_bytes(made.to_bytes())
    assert torch.equal(found.tokens, made.tokens)
    assert found.logits.dtype == dtype
    assert torch.equal(found.logits, one.gather(-1, found.tokens.long()))
    assert found.vocabulary == vocabulary
    other = logits(13, 3, 2.0, vocabulary)
    again = found.compared(slice(0, 3), other)
    assert again.divergence.tolist() == made.compared(slice(0, 3), other).divergence.tolist()


def test_a_vocabulary_of_49152_takes_a_sixteenth_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = compress(logits(14, 8, 2.0, 49152), 0, 0)
    size = len(made.to_bytes())
    assert size < 8 * 49152 * 4 / 16
    assert 8 * 49152 * 4 * made.share == pytest.approx(size, abs=1000)  # but for the header


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    one, other = logits(15, 3, 1.0), logits(16, 3, 1.0)
    found = compress(one, 0, 0)
    other[1, 2] = value
    with pytest.raises(DivergenceError, match="1 of 3 positions have no finite divergence"):
        found.compared(slice(0, 3), other)
    one[2, 5] = value
    with pytest.raises(DivergenceError, match="reference model gives logits that are NaN"):
        compress(one, 0, 0)


def test_another_vocabulary_cannot_be_compared() -> None:
    with pytest.raises(DivergenceError, match="different vocabularies"):
        compress(logits(17, 3, 1.0), 0, 0).compared(slice(0, 3), torch.randn(3, 299))
