"""Logits by parts against the model's own forward pass, and the memory that scoring takes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.suites import logits as by_parts
from harness.suites.comparing import Comparison
from harness.suites.logits import Logits, parts
from harness.suites.scoring import window_nll
from tests.quant.architectures import CONFIGS, random_windows, tiny_model

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_parts_are_the_logits_of_a_plain_forward_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_parts, "WHOLE_BYTES", 0)
    model = tiny_model(name)
    ids = torch.stack(random_windows(2))
    plain = model(input_ids=ids, use_cache=False).logits
    found = Logits(model, ids)
    assert found._whole is None, "this architecture would need memory for all logits"
    assert found.shape[1] == ids.shape[1]
    for start in range(0, ids.shape[1], 7):
        part = found[:, start : start + 7]
        torch.testing.assert_close(part, plain[:, start : start + 7], rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(model.get_decoder())
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain)


@torch.inference_mode()
def test_small_logits_are_those_of_one_pass_bit_for_bit() -> None:
    model, ids = tiny_model("llama"), torch.stack(random_windows(1))
    plain = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(Logits(model, ids)[:, 3:20], plain[:, 3:20])


def peak() -> int:
    """Largest resident set since RESET was written, bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def wide_model(vocabulary: int) -> LlamaForCausalLM:
    """A model of which the head is nearly all: hidden states of width 16, 2048 positions."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def taken(step: Callable[[Tensor], Any], ids: Tensor) -> tuple[Any, int]:
    """What step(ids) gives, and the memory it takes at most, bytes; after a small step."""
    step(ids[:, :64])
    RESET.write_text("5")
    before = peak()
    return step(ids), peak() - before


def random_ids(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (1, 2048), generator=generator)


@pytest.mark.skipif(not RESET.exists(), reason="the peak is read from /proc of Linux")
@pytest.mark.parametrize("vocabulary", [49_152, 128_256])
@torch.inference_mode()
def test_a_window_of_2048_tokens_is_scored_in_under_400_megabytes(vocabulary: int) -> None:
    """The logits alone would take 403 MB, and 1,051 MB."""
    model, ids = wide_model(vocabulary), random_ids(vocabulary)
    found, most = taken(lambda part: window_nll(Logits(model, part), part)[0], ids)
    assert most < 400e6
    hidden = model.model(input_ids=ids).last_hidden_state[0, :-1]
    expected = 0.0
    for rows, targets in zip(hidden.split(256), ids[0, 1:].split(256), strict=True):
        scores = rows @ model.lm_head.weight.T
        losses = scores.logsumexp(1) - scores.gather(1, targets[:, None])[:, 0]
        expected += float(losses.double().sum())
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.skipif(not RESET.exists(), reason="the peak is read from /proc of Linux")
@pytest.mark.parametrize("vocabulary", [49_152, pytest.param(128_256, marks=pytest.mark.long)])
@torch.inference_mode()
def test_a_window_of_2048_tokens_is_compared_in_under_400_megabytes(vocabulary: int) -> None:
    """Two models, float64; the logits of both alone would take 806 MB, and 2,101 MB."""
    model, ids = wide_model(vocabulary), random_ids(vocabulary)
    other = wide_model(vocabulary)
    other.model.norm.weight.mul_(20)

    def step(part: Tensor) -> Comparison:
        comparison = Comparison()
        comparison.add(Logits(model, part), Logits(other, part))
        return comparison

    found, most = taken(step, ids)
    assert most < 400e6
    last = slice(1800, None)
    one, two = (
        each(input_ids=ids, logits_to_keep=248).logits[0].double().log_softmax(-1)
        for each in (model, other)
    )
    expected = (one.exp() * (one - two)).sum(-1)
    torch.testing.assert_close(found.divergence[0][last], expected, rtol=1e-5, atol=1e-9)
    assert len(found.divergence[0]) == 2048
    assert found.flips == [0]  # a positive factor


@torch.inference_mode()
def test_slices_cover_the_positions_within_both_bounds() -> None:
    whole = torch.zeros(2, 10, 6)
    assert [(p.start, p.stop) for p in parts(whole, 10**9, 8)] == [(0, 4), (4, 8), (8, 10)]
    assert [(p.start, p.stop) for p in parts(whole, 30, 99)] == [
        (start, min(start + 3, 10)) for start in (0, 3, 6, 9)
    ]
    assert [(p.start, p.stop) for p in parts(whole, 1, 99, 2)] == [(0, 1), (1, 2)]
