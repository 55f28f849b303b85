"""Logits by parts against the model's own forward pass, and the memory that scoring takes."""

import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.suites import logits as by_parts
from harness.suites.logits import Logits
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


@pytest.mark.skipif(not RESET.exists(), reason="the peak is read from /proc of Linux")
@torch.inference_mode()
def test_a_window_of_2048_tokens_takes_under_400_megabytes() -> None:
    """At 49,152 tokens of vocabulary, where the logits alone would take 403 MB."""
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 49_152, (1, 2048), generator=torch.Generator().manual_seed(0))
    window_nll(Logits(model, ids[:, :64]), ids[:, :64])
    RESET.write_text("5")
    before = peak()
    found = window_nll(Logits(model, ids), ids)
    assert peak() - before < 400e6
    hidden = model.model(input_ids=ids).last_hidden_state[0, :-1]
    scores = hidden @ model.lm_head.weight.T
    expected = scores.logsumexp(1) - scores.gather(1, ids[0, 1:, None])[:, 0]
    assert float(found) == pytest.approx(float(expected.double().sum()), rel=1e-6)
