"""The AWQ writer: words by the textbook, folders that come back the same, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

import quant
from quant import config as quant_config
from quant.calibrate.stream import quantize_model
from quant.checkpoint import verify
from quant.checkpoint.choose import written_format
from quant.checkpoint.formats.base import QuantizedModel, StoredLayer
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn
from quant.weight import QuantizedWeight
from tests.oracles.random_weights import random_weight, same
from tests.quant.stored_layers import write
from tests.quant.tiny_checkpoints import METHOD, SPECIAL, logits, quantized

EMBEDDED = Path(__file__).resolve().parents[3] / "harness" / "embedded" / "model"
W4 = Scheme(4, group_size=8)
# Output 8 i + j of a word is in the nibble, from the low end, at place j here.
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def by_the_textbook(words: Tensor) -> Tensor:
    """uint8 [rows, outputs], a nibble at a time."""
    rows = [
        [(word >> (4 * nibble)) & 15 for word in line for nibble in ORDER]
        for line in words.tolist()
    ]
    return torch.tensor(rows, dtype=torch.uint8)


def as_stored(weight: QuantizedWeight) -> QuantizedWeight:
    """The same numbers; AWQ has no symmetric grids, only zero-points that are all 8."""
    return QuantizedWeight(
        weight.codes, replace(weight.scheme, symmetric=False), scale=weight.scale, zero=weight.zero
    )


@pytest.mark.parametrize("group_size", [None, 8, 24])
@pytest.mark.parametrize("symmetric", [True, False])
def test_words_by_the_textbook(group_size: int | None, symmetric: bool) -> None:
    weight = random_weight(Scheme(4, group_size=group_size, symmetric=symmetric), 40, 48)
    assert weight.zero is not None
    tensors = write("awq", weight)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16,
    }  # fmt: skip
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert torch.equal(by_the_textbook(tensors["qweight"]), weight.codes.t())
    assert torch.equal(by_the_textbook(tensors["qzeros"]), weight.zero.t())
    assert torch.equal(tensors["scales"], weight.scale.t())
    groups = weight.scheme.groups(48)
    _, writer = written_format("awq")
    assert writer.entries(weight.scheme, StoredLayer("proj", 40, 48)) == {
        "qweight": ((48, 5), torch.int32),
        "qzeros": ((groups, 5), torch.int32),
        "scales": ((groups, 40), torch.float16),
    }


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize(
    "scheme", [W4, Scheme(4), replace(W4, symmetric=True), replace(W4, grid="mse")]
)
def test_a_folder_comes_back_the_same(tmp_path: Path, name: str, scheme: Scheme) -> None:
    """Codes, scales and zero-points bit by bit, zero-points of 0 too, and the same logits."""
    model, weights = quantized(name, scheme)
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD)
    folder = quant.export(artifact, tmp_path / "b", "awq").folder
    assert verify(folder)
    found = quant.load_weights(folder)
    assert found.keys() == weights.keys()
    for layer, weight in weights.items():
        assert same(found[layer], as_stored(weight)), layer
    assert torch.equal(logits(quant.load(folder, kernel="reference")), logits(model))
    again = quant.export(folder, tmp_path / "c", "gptq-v2").folder
    assert all(same(w, found[layer]) for layer, w in quant.load_weights(again).items())


def test_the_configuration(tmp_path: Path) -> None:
    model, weights = quantized("llama", W4)
    del weights["model.layers.0.self_attn.q_proj"]
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD)
    folder = quant.export(artifact, tmp_path / "b", "awq").folder
    described = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert described.pop("meta")["method"] == METHOD
    assert described == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 8,
        "zero_point": True,
        "modules_to_not_convert": ["model.layers.0.self_attn.q_proj", "lm_head"],
    }
    stored = load_file(folder / "model.safetensors")
    assert not [name for name in stored if name.endswith("g_idx")]
    assert stored["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32
    assert torch.equal(logits(quant.load(folder, kernel="reference")), logits(model))


@pytest.mark.parametrize("scheme", [Scheme(4, group_size=64), Scheme(4, symmetric=True)])
def test_the_embedded_model(tmp_path: Path, scheme: Scheme) -> None:
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()
    weights = quantize_model(model, [], quant_config.QuantizationConfig(rtn.SOLVER, scheme)).weights
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD, tokenizer=EMBEDDED)
    folder = quant.export(artifact, tmp_path / "b", "awq").folder
    ours, theirs = (quant.load(each, kernel="reference") for each in (artifact, folder))
    assert torch.equal(logits(theirs), logits(ours))


def artifact_of(folder: Path, scheme: Scheme, name: str = "llama", **how: bool) -> Path:
    model, weights = quantized(name, scheme, **how)
    return quant.save(folder / "a", model, weights, method=METHOD)


def odd_outputs(folder: Path) -> Path:
    """A model whose layers have 36 outputs."""
    config = LlamaConfig(
        hidden_size=40, intermediate_size=36, num_hidden_layers=1, num_attention_heads=4, **SPECIAL
    )
    model = AutoModelForCausalLM.from_config(config)
    name = "model.layers.0.mlp.up_proj"
    weights = {name: random_weight(W4, 36, 40)}
    return quant.save(folder / "a", model, weights, method=METHOD)


def quantized_head(folder: Path) -> Path:
    model, weights = quantized("llama", W4)
    head = {"lm_head": random_weight(W4, 96, 40)}
    return quant.save(folder / "a", model, {**weights, **head}, method=METHOD)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda f: artifact_of(f, Scheme(3, group_size=8)),
            "a has 3 bits, .* only 4: use --format c",
        ),
        (
            lambda f: artifact_of(f, Scheme(4, scale_dtype="bfloat16")),
            "proj has bfloat16 scales, .* only float16: use --format c.*, or quantize",
        ),
        (
            lambda f: artifact_of(f, Scheme(4, group_size=16)),
            "groups of 16 do not divide its 72 in",
        ),
        (lambda f: artifact_of(f, W4, scattered=True), "act-order has scattered, .* gptq-v2, or"),
        (lambda f: artifact_of(f, W4, name="gpt2"), "c_attn is a Conv1D, .* use --format gptq-v2"),
        (odd_outputs, "up_proj has 36 outputs, and awq packs eight into a word: use --format com"),
        (quantized_head, "lm_head is a quantized head, .*: use --format compressed-tensors"),
    ],
)
def test_what_awq_cannot_hold(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    """One sentence with the next step, and nothing is written."""
    source = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ArtifactError, match=message) as raised:
        quant.export(source, tmp_path / "out", "awq")
    assert str(raised.value).endswith(".")
    assert sorted(tmp_path.iterdir()) == before


def test_a_name_inside_another_is_refused() -> None:
    """AutoAWQ and vLLM look for the names of unquantized layers anywhere in the other names."""
    _, writer = written_format("awq")
    layers = ("model.layers.0.mlp.gate_proj",)
    model = QuantizedModel(W4, layers, ("model.layers.0.mlp.gate",), False, {}, "test")
    with pytest.raises(ArtifactError, match=r"mlp\.gate is not quantized, .* skip .*gate_proj too"):
        writer.describe(model)


def test_what_readers_need_is_said_before_anything_is_written(tmp_path: Path) -> None:
    artifact = artifact_of(tmp_path, replace(W4, symmetric=True))
    there: list[bool] = []

    def note(_: str) -> None:
        there.append(bool(list(tmp_path.glob("*out*"))))

    exported = quant.export(artifact, tmp_path / "out", "awq", on_note=note)
    assert there == [False] * len(exported.notes)
    first, model, zeros, groups, kernels = exported.notes
    assert "transformers reads AWQ only with GPTQModel (pip install gptqmodel accelerate)" in first
    assert "the model is float32: load it with dtype=float16" in model
    assert "all 8" in zeros
    assert groups.startswith("groups of 8 are read by Bitsweep")
    assert "14 layers (such as model.layers.0.mlp.down_proj)" in kernels


def test_a_model_for_every_reader_has_one_note() -> None:
    _, writer = written_format("awq")
    layer = StoredLayer("proj", 128, 128, dtype=torch.float16)
    assert len(writer.notes(Scheme(4, group_size=128), [layer])) == 1
