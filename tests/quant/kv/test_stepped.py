"""Caches by steps: what all tokens at once give is what decoding token by token gives."""

import pytest
import torch

from quant.kv import stepped
from quant.kv.attention import using
from quant.kv.base import Shape
from quant.kv.rounding import Rounding
from quant.kv.schemes import hadamard, kivi, per_channel, per_token, staircase
from quant.kv.stepped import Step, Stepped
from tests.oracles.textbook_kv_cache import RoundedLayer, Rule, decode, round_group, walsh
from tests.quant.architectures import tiny_model

TOKENS, WIDTH = 45, 8
SHAPE = Shape(WIDTH, WIDTH)


def token(bits: int, after: int, rotated: bool = False) -> tuple[Step, Rule]:
    rounding = Rounding(bits, WIDTH, rotated=rotated)
    return Step(rounding, after), Rule(bits, WIDTH, "token", after, rotated=rotated)


def channel(bits: int, group: int, after: int, block: int) -> tuple[Step, Rule]:
    rounding = Rounding(bits, group, by_channel=True)
    return Step(rounding, after, block), Rule(bits, group, "channel", after, block)


# What is done to keys and to values.
CACHES = {
    "per token": ([token(3, 0)], [token(3, 0)]),
    "window": ([token(2, 7)], [token(2, 7)]),
    "rotated": ([token(2, 5, True)], [token(2, 5, True)]),
    "per channel": ([channel(2, 4, 3, 4)], [channel(3, 5, 0, 5)]),
    "KIVI": ([channel(2, 4, 0, 12)], [token(2, 13)]),
    "staircase": (
        [token(8, 2), token(4, 5), token(2, 19)],
        [token(8, 3), token(4, 3), token(2, 40)],
    ),
}


def both(name: str) -> tuple[Stepped, RoundedLayer]:
    keys, values = CACHES[name]
    steps = [tuple(step for step, _ in each) for each in (keys, values)]
    rules = [[rule for _, rule in each] for each in (keys, values)]
    return Stepped(SHAPE, *steps, []), RoundedLayer(*rules)


@pytest.fixture(params=[(16, 256), (4, 4)], ids=["all queries at once", "four at a time"])
def queries(request, monkeypatch) -> None:
    monkeypatch.setattr(stepped, "QUERIES", request.param)


@torch.inference_mode()
def logits_with(model, ids, cache) -> torch.Tensor:
    with using(model, cache):
        return model(input_ids=ids[None], use_cache=False).logits[0]


@pytest.mark.parametrize("name", CACHES)
def test_all_tokens_at_once_are_tokens_one_by_one(name, queries) -> None:
    model = tiny_model("llama", num_hidden_layers=2).double()  # two query heads share a key head
    ids = torch.randint(3, 90, (TOKENS,), generator=torch.Generator().manual_seed(1))
    cache, _ = both(name)
    expected, kept = decode(model, ids, lambda: both(name)[1])
    found = logits_with(model, ids, cache)
    assert (found - expected).abs().max() < 1e-6 * expected.std()
    # Far from the cache's own precision: the test would see a token in a wrong state.
    full, _ = decode(model, ids, lambda: RoundedLayer([], []))
    assert (full - expected).abs().max() > 0.01 * expected.std()
    held = sum(store.bits() for stores in kept.layers[0].stores for store in stores)
    numbers = TOKENS * 2 * len(kept.layers[0].stores[0]) * WIDTH
    blocks = {step.block for step in (*cache.keys, *cache.values)}
    if blocks == {1}:
        assert cache.bits(TOKENS) == pytest.approx(held / numbers, abs=1e-12)


@pytest.mark.parametrize("family", ["opt", "bloom", "gpt2", "qwen3", "gpt-neox"])
def test_positions_of_every_kind(family) -> None:
    """Learned, rotary, and a bias of the logits; several heads or one."""
    model = tiny_model(family).double()
    ids = torch.randint(3, 90, (33,), generator=torch.Generator().manual_seed(2))
    cache, _ = both("KIVI")
    expected, _ = decode(model, ids, lambda: both("KIVI")[1])
    assert (logits_with(model, ids, cache) - expected).abs().max() < 1e-6 * expected.std()


def test_one_head_of_keys() -> None:
    model = tiny_model("llama", num_key_value_heads=1).double()
    ids = torch.randint(3, 90, (33,), generator=torch.Generator().manual_seed(2))
    cache, _ = both("staircase")
    expected, _ = decode(model, ids, lambda: both("staircase")[1])
    assert (logits_with(model, ids, cache) - expected).abs().max() < 1e-6 * expected.std()


def test_bits_are_the_mean_of_what_is_held_over_a_cycle() -> None:
    """12 keys wait at most: the mean over 12 tokens of what is stored, counted one by one."""
    cache, layer = both("KIVI")
    states = torch.randn(1, 1, 60, WIDTH, generator=torch.Generator().manual_seed(0))
    held, numbers = 0, 0
    for time in range(60):
        layer.update(states[:, :, time : time + 1], states[:, :, time : time + 1])
        if time >= 48:
            held += sum(store.bits() for (store,) in layer.stores)
            numbers += (time + 1) * 2 * WIDTH
    assert cache.bits(60) == pytest.approx(held / numbers, abs=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_the_textbooks(bits) -> None:
    x = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(bits)) * 3
    x[0, 1] = 0.25  # a group without a spread
    by_token = Rounding(bits, 4).read(x)
    by_channel = Rounding(bits, 5, by_channel=True).read(x)
    for head in range(2):
        for t in range(12):
            for start in (0, 4):
                part = x[head, t, start : start + 4].double().numpy()
                expected = torch.tensor(round_group(part, bits))
                assert torch.allclose(by_token[head, t, start : start + 4].double(), expected)
        for c in range(8):
            for start in (0, 5):
                part = x[head, start : start + 5, c].double().numpy()
                expected = torch.tensor(round_group(part, bits))
                assert torch.allclose(by_channel[head, start : start + 5, c].double(), expected)
    assert torch.equal(by_channel[:, 10:], x[:, 10:])  # no whole group


def test_a_rotation_is_undone() -> None:
    from quant.kv.rounding import hadamard as matrix

    assert torch.allclose(matrix(8).double(), torch.tensor(walsh(8)), atol=1e-7)
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    spread = torch.zeros(1, 1, 8)
    spread[..., 0] = 4.0  # an outlier that a rotation spreads evenly: no error is left
    assert torch.allclose(Rounding(2, 8, rotated=True).read(spread), spread, atol=2e-3)
    assert (Rounding(8, 8, rotated=True).read(x) - x).abs().max() < 0.02


SOLVED = {
    "per_token": (per_token, per_token.Options()),
    "per_token, 2 bits": (per_token, per_token.Options(bits=2, group=32)),
    "per_channel": (per_channel, per_channel.Options()),
    "hadamard": (hadamard, hadamard.Options()),
    "kivi": (kivi, kivi.Options()),
    "staircase": (staircase, staircase.Options()),
}


@pytest.mark.parametrize("budget", [3.5, 6.0, 9.0])
@pytest.mark.parametrize("length", [1024, 8192])
@pytest.mark.parametrize("name", SOLVED)
def test_solved_caches_meet_the_budget(name, length, budget) -> None:
    module, options = SOLVED[name]
    cache = module.solve(options, Shape(64, 64), length, budget)
    assert budget - 0.05 < cache.bits(length) <= budget
