"""The figures of compression are those of whole distributions and of the estimate."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import compression
from harness.suites import compressed


def test_a_line_has_the_exact_divergence_of_the_rounded_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compressed, "ENTRIES", 32)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 96, (3, 20))
    with torch.inference_mode():
        compression.show(model, ids, [3])
        other = compression.rounded(model, 3)
        first, second = (each(input_ids=ids).logits.double() for each in (model, other))
    p, q = first.softmax(-1), second.softmax(-1)
    exact = float((p * (p / q).log()).sum(-1).mean())
    line = capsys.readouterr().out.splitlines()[1]
    found, estimate = (
        float(line.split(word)[1].split()[0].strip(",")) for word in ("KL ", "estimate ")
    )
    assert found == pytest.approx(exact, rel=1e-4)
    assert estimate == pytest.approx(exact, rel=0.1)
    assert exact > 1e-3
