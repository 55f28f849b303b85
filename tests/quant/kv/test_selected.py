"""Caches that leave tokens out: the choice of a naive loop, and of a cache that really evicts."""

import numpy as np
import pytest
import torch

from quant.kv.attention import using
from quant.kv.base import Heads, Shape
from quant.kv.schemes import h2o, keyformer
from quant.kv.selected import Selected, gumbel_draws
from tests.oracles.textbook_kv_cache import HeavyLayer, decode, select
from tests.quant.architectures import tiny_model

SHARING, GROUP, TOKENS, WIDTH, LAYER = 2, 2, 40, 8, 3


def heads(biased: bool) -> Heads:
    generator = torch.Generator().manual_seed(5)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64) * 1.5

    slopes = torch.tensor([0.3, 0.1, 0.05, 0.01], dtype=torch.float64).view(SHARING, GROUP, 1, 1)
    return Heads(
        query=draw(SHARING, GROUP, TOKENS, WIDTH),
        key=draw(SHARING, TOKENS, WIDTH),
        value=draw(SHARING, TOKENS, WIDTH),
        scaling=WIDTH**-0.5,
        bias=slopes * torch.arange(TOKENS) if biased else None,
        layer=LAYER,
        stored=torch.float64,
    )


def softmax(x: np.ndarray) -> np.ndarray:
    found = np.exp(x - x.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)


def by_hand(given: Heads, size: int, recent: int, score) -> torch.Tensor:
    found = []
    for head in range(SHARING):
        slopes = None if given.bias is None else (given.bias[head, :, 0, 1]).numpy()
        query = (given.query[head] * given.scaling).numpy()
        found.append(
            select(query, given.key[head].numpy(), given.value[head].numpy(), slopes, size, recent,
                   lambda *found, head=head: score(*found, head))
        )  # fmt: skip
    return torch.tensor(np.stack(found))


@pytest.mark.parametrize("biased", [False, True], ids=["rotary", "ALiBi"])
@pytest.mark.parametrize(("size", "recent"), [(9, 4), (5, 1), (30, 12), (60, 3)])
def test_heavy_hitters_are_those_of_a_naive_loop(size, recent, biased) -> None:
    given = heads(biased)
    cache = Selected(Shape(WIDTH, WIDTH, biased), size, recent, h2o.scores)
    expected = by_hand(given, size, recent, lambda logits, *_: softmax(logits).sum(0))
    assert torch.allclose(cache.attend(given), expected, atol=1e-12)
    latest = by_hand(given, size, size - 1 if size < TOKENS else recent, lambda x, *_: x.sum(0))
    assert torch.allclose(latest, expected) == (size >= TOKENS)  # the choice matters


@pytest.mark.parametrize(("size", "recent"), [(9, 3), (20, 6)])
def test_key_tokens_are_those_of_a_naive_loop(size, recent) -> None:
    """Its equation: softmax of (x + g) / tau over the tokens held, tau from 1 to 2."""
    given = heads(False)
    held = [min(time + 1, size + 1) for time in range(TOKENS)]
    draws = gumbel_draws(7, LAYER)
    noise = [draws((SHARING, GROUP, each)).double().numpy() for each in held]

    def score(logits, time, places, head):
        assert len(places) == held[time]
        tau = 1.0 + (2.0 - 1.0) * time / TOKENS
        return softmax((logits + noise[time][head]) / tau).sum(0)

    shape = Shape(WIDTH, WIDTH)
    options = keyformer.Options(recent=recent / size, seed=7)
    budget = (size + 0.01) * (16 * 2 * WIDTH + 32) / (TOKENS * 2 * WIDTH)
    cache = keyformer.solve(options, shape, TOKENS, budget)
    assert (cache.tokens, cache.recent) == (size, recent)
    assert torch.allclose(cache.attend(given), by_hand(given, size, recent, score), atol=1e-12)
    other = keyformer.solve(keyformer.Options(recent=recent / size, seed=8), shape, TOKENS, budget)
    assert not torch.allclose(cache.attend(given), other.attend(given), atol=1e-3)


def test_noise_is_gumbels() -> None:
    drawn = gumbel_draws(0, 0)((200_000,)).double()
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert float(drawn.var()) == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_a_layer_at_once_is_a_cache_that_really_evicts(monkeypatch) -> None:
    """Of a whole model, by transformers' own eager attention, token by token.

    Its softmax in float32 would let other tokens go where two scores are nearly equal.
    """
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim=dim)
    )
    model = tiny_model("llama", num_hidden_layers=2).double()
    ids = torch.randint(3, 90, (TOKENS,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), using(model, Selected(Shape(8, 8), 11, 5, h2o.scores)):
        found = model(input_ids=ids[None], use_cache=False).logits[0]
    model.set_attn_implementation("eager")
    expected, cache = decode(model, ids, lambda: HeavyLayer(11, 5))
    assert cache.layers[0].keys.shape == (1, 2, 11, 8)
    assert (found - expected).abs().max() < 1e-9 * expected.std()
    other, _ = decode(model, ids, lambda: HeavyLayer(11, 10))
    assert (other - expected).abs().max() > 0.1 * expected.std()


def test_bits_count_the_scores() -> None:
    cache = h2o.solve(h2o.Options(), Shape(64, 64), 1000, 4.0)
    # 250 tokens of 16 bits would fit; a score of 32 bits beside 128 numbers takes 1/64 of them.
    assert cache.tokens == int(4.0 * 1000 * 128 / (16 * 128 + 32)) == 246
    assert cache.bits(1000) == 246 * (16 * 128 + 32) / (1000 * 128)
    assert cache.bits(100) == 16.25
    assert cache.recent == 123
    biased = h2o.solve(h2o.Options(), Shape(64, 64, True), 1000, 4.0)
    assert biased.tokens == int(4.0 * 1000 * 128 / (16 * 128 + 64))  # positions as well
