"""Short last groups and 5 to 7 bits: through an artifact and the exports, or refused by name."""

from pathlib import Path

import pytest
import torch

import quant
from quant.errors import ArtifactError
from quant.linear import QuantLinear
from quant.scheme import Scheme
from tests.oracles.random_weights import same
from tests.quant.tiny_checkpoints import METHOD, logits, quantized

# 40 and 72 inputs: groups of 32 leave 8.
CASES = [
    ("llama", Scheme(4, group_size=32), False),
    ("llama", Scheme(4, group_size=32), True),
    ("opt", Scheme(3, group_size=128, symmetric=True), False),
    ("gpt2", Scheme(2, group_size=32, levels="ternary"), False),
    ("opt", Scheme(5), False),
    ("llama", Scheme(6, group_size=8, symmetric=True), True),
    ("gpt2", Scheme(7, group_size=32), False),
]


@pytest.mark.parametrize(("name", "scheme", "scattered"), CASES)
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_an_artifact_holds_them(
    tmp_path: Path, name: str, scheme: Scheme, scattered: bool, kernel: str
) -> None:
    model, weights = quantized(name, scheme, scattered)
    folder = quant.save(tmp_path / "artifact", model, weights, method=METHOD)
    stored = quant.load_weights(folder)
    assert all(same(stored[layer], weights[layer]) for layer in weights)
    loaded = quant.load(folder, kernel=kernel)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    layers = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantLinear)}
    assert all(same(layers[layer].quantized_weight(), weights[layer]) for layer in weights)


@pytest.mark.parametrize(
    ("scheme", "format"),
    [
        (Scheme(4, group_size=32), "gptq-v1"),
        (Scheme(4, group_size=32), "gptq-v2"),
        (Scheme(6, group_size=8), "gptq-v2"),
    ],
)
def test_gptq_holds_them(tmp_path: Path, format: str, scheme: Scheme) -> None:
    model, weights = quantized("llama", scheme)
    for weight in weights.values():
        assert weight.zero is not None
        weight.zero.clamp_(min=1)
    artifact = quant.save(tmp_path / "artifact", model, weights, method=METHOD)
    stored = quant.load_weights(quant.export(artifact, tmp_path / "out", format).folder)
    assert all(torch.equal(stored[n].dequantize(), weights[n].dequantize()) for n in weights)
    assert all(torch.equal(stored[n].codes, weights[n].codes) for n in weights)


def test_compressed_tensors_refuses_a_short_group_by_name(tmp_path: Path) -> None:
    model, weights = quantized("llama", Scheme(4, group_size=32))
    artifact = quant.save(tmp_path / "artifact", model, weights, method=METHOD)
    with pytest.raises(ArtifactError, match=r"groups of 32 do not divide its .*gptq-v2"):
        quant.export(artifact, tmp_path / "out", "compressed-tensors")
