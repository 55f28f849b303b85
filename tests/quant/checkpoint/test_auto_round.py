"""AutoRound's configuration: the tensors it names, layers of their own schemes, what it refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

import quant
from quant.audit.run import audit
from quant.audit.verdict import NOT_QUANTIZED, ROUNDED
from quant.checkpoint.choose import parse
from quant.checkpoint.inspection import inspect
from quant.checkpoint.source import ArtifactSource, CheckpointSource
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight
from tests.oracles.random_weights import random_weight
from tests.quant.stored_layers import write
from tests.quant.tiny_checkpoints import edit_config, edit_tensors, logits, quantized

SAID = {
    "quant_method": "auto-round",
    "autoround_version": "0.15.1",
    "bits": 4,
    "group_size": 64,
    "sym": False,
    "data_type": "int",
    "packing_format": "auto_round:auto_awq",
}


@pytest.mark.parametrize(
    ("packing", "title"),
    [
        ("auto_round:auto_awq", "AWQ gemm"),
        ("auto_round:auto_gptq", "GPTQ v1"),
        ("auto_round:gptqmodel", "GPTQ v2"),
        ("auto_round", "GPTQ v2"),
    ],
)
def test_the_packing_says_how_tensors_are_read(packing, title):
    found = parse({**SAID, "packing_format": packing}, "here")
    assert found.name == title
    assert (found.bits, found.group_size, found.symmetric) == (4, 64, False)
    assert found.producer == "auto-round 0.15.1"


def test_layers_that_are_not_quantized_may_be_named():
    found = parse({**SAID, "extra_config": {"lm_head": {"bits": 16}, "x": {"bits": 4}}}, "here")
    assert found.bits == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"packing_format": "mlx"}, "packing_format='mlx' cannot be read"),
        ({"data_type": "mx_fp"}, "data_type='mx_fp' cannot be read"),
        ({"act_bits": 8}, "act_bits=8 cannot be read"),
        ({"rotation_config": {"size": 32}}, "rotation_config={'size': 32} cannot be read"),
        (
            {"extra_config": {"model.layers.0.mlp.down_proj": {"bits": 8}}},
            "extra_config['model.layers.0.mlp.down_proj'].bits=8: AWQ is read with 4 bits only",
        ),
        ({"extra_config": {"x": {"data_type": "mx_fp"}}}, "extra_config['x'].data_type='mx_fp'"),
        ({"extra_config": {"x": {"super_bits": 6}}}, "extra_config['x'].super_bits=6 cannot be"),
        ({"extra_config": {"x": {"act_bits": 8}}}, "extra_config['x'].act_bits=8 cannot be read"),
        ({"extra_config": {"x": {"colour": 1}}}, "extra_config['x'].colour=1 is not understood"),
        ({"extra_config": {"x": 4}}, "extra_config['x']=4 cannot be read"),
        ({"extra_config": {"*x": {"bits": 8}}}, "neither a layer nor a regular expression"),
        ({"extra_config": ["x"]}, "extra_config=['x'] cannot be read"),
        ({"bits": 3}, "bits=3: AWQ is read with 4 bits only"),
    ],
)
def test_what_cannot_be_read_is_named(change, sentence):
    with pytest.raises(ArtifactError, match="here") as caught:
        parse({**SAID, **change}, "here")
    assert sentence in str(caught.value)


USUAL = Scheme(4, 8)
EIGHT = Scheme(8, 20, symmetric=True)  # gate_proj of block 0
THREE = Scheme(3, 8)  # v_proj of both, by an expression, but for one that is named
WHOLE = "model.layers.1.self_attn.o_proj"
MIXED: dict[str, Any] = {
    "quant_method": "auto-round", "autoround_version": "0.15.1", "bits": 4, "group_size": 8,
    "sym": False, "data_type": "int", "packing_format": "auto_round",
    "extra_config": {
        "model.layers.0.mlp.gate_proj": {"bits": 8, "group_size": 20, "sym": True},
        r".*self_attn\.v_proj.*": {"bits": 3},
        "model.layers.1.self_attn.v_proj": {"bits": 4, "act_bits": 16, "super_bits": None},
        WHOLE: {"bits": 16, "data_type": "float"},
    },
}  # fmt: skip


def scheme_of(layer: str) -> Scheme:
    if layer == "model.layers.0.mlp.gate_proj":
        return EIGHT
    return THREE if layer == "model.layers.0.self_attn.v_proj" else USUAL


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, PreTrainedModel, dict[str, QuantizedWeight]]:
    """A checkpoint of several schemes, with one layer in full precision; its model and weights."""
    model, weights = quantized("llama", USUAL)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for seed, layer in enumerate(dict(weights)):
        if layer == WHOLE:
            weights.pop(layer)
            continue
        weight = random_weight(scheme_of(layer), *weights[layer].shape, seed=seed)
        model.get_submodule(layer).weight.data.copy_(weight.dequantize())
        del tensors[f"{layer}.weight"]
        stored = write("gptq-v2", weight)
        tensors |= {f"{layer}.{part}": tensor for part, tensor in stored.items()}
        weights[layer] = weight
    folder = tmp_path / "mixed"
    model.config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_config(lambda config: config.update(quantization_config=MIXED))(folder)
    return folder, model, weights


def test_layers_have_schemes_of_their_own(mixed):
    folder, model, weights = mixed
    found = quant.load_weights(folder)
    assert found.keys() == weights.keys()
    for layer, weight in found.items():
        assert weight.scheme == scheme_of(layer)
        assert torch.equal(weight.codes, weights[layer].codes)
        assert torch.equal(weight.dequantize(), weights[layer].dequantize())
    loaded = quant.load(folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    with ArtifactSource(folder) as source:
        bits = {name: bits / count for name, (count, bits) in source.layer_bits().items()}
    assert bits["model.layers.0.mlp.gate_proj"] == 8 + (16 + 8) / 20
    assert bits["model.layers.0.self_attn.v_proj"] == 3 + (16 + 3) / 8
    assert bits["model.layers.1.self_attn.v_proj"] == 4 + (16 + 4) / 8
    seen = inspect(folder)
    assert seen.format == "GPTQ v2, mixed precision"
    assert seen.scheme == USUAL
    words = {"11 layers w4g8", "1 layer w3g8", "1 layer w8g20_sym"}
    assert set(seen.mixture.split(", ")) == words
    sizes = {name: weight.codes.numel() for name, weight in weights.items()}
    whole = sum(bits[name] * count for name, count in sizes.items()) / sum(sizes.values())
    assert seen.bits_per_weight == pytest.approx(whole)


def test_layers_are_audited_on_their_own_schemes(mixed, tmp_path):
    folder, model, _ = mixed
    model.config.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    windows = [torch.arange(3, 60)]
    with CheckpointSource(tmp_path / "base", torch.float32) as source:
        found = audit(folder, source, tmp_path / "base", windows)
    layers = {each.name: each for each in found.layers}
    assert layers[WHOLE].verdict.name == NOT_QUANTIZED
    assert layers["model.layers.0.mlp.gate_proj"].scheme == EIGHT.name
    assert layers["model.layers.0.self_attn.v_proj"].scheme == THREE.name
    # The base has the values of the levels themselves.
    assert {each.verdict.name for each in found.layers} == {NOT_QUANTIZED, ROUNDED}
    assert found.claim.producer == "auto-round 0.15.1"


def test_the_head_may_be_one_of_them(mixed):
    """AutoRound lists all settings of a quantized head, whether they differ or not."""
    folder, _, _ = mixed
    head = random_weight(EIGHT, 96, 40, seed=30)

    def quantize(tensors):
        del tensors["lm_head.weight"]
        tensors |= {f"lm_head.{part}": tensor for part, tensor in write("gptq-v2", head).items()}

    edit_tensors(quantize)(folder)
    said = {"bits": 8, "group_size": 20, "sym": True, "data_type": "int", "act_bits": 16,
            "act_sym": None, "super_bits": None, "rotation_config": None}  # fmt: skip
    edit_config(lambda c: c["quantization_config"]["extra_config"].update(lm_head=said))(folder)
    found = inspect(folder)
    assert found.scheme == dataclasses.replace(USUAL, head=EIGHT)
    assert "w8g20_sym" in found.mixture
    assert torch.equal(quant.load_weights(folder)["lm_head"].codes, head.codes)
    loaded = quant.load(folder)
    assert torch.equal(loaded.get_submodule("lm_head").dequantize(), head.dequantize())


@pytest.mark.parametrize("format", ["gptq-v2", "compressed-tensors"])
def test_an_export_keeps_the_schemes_of_layers(mixed, tmp_path, format):
    folder, model, weights = mixed
    notes = quant.export(folder, tmp_path / "out", format).notes
    said = "layers of several schemes" if format.startswith("gptq") else "vLLM does not load"
    assert any(said in note for note in notes)
    found = quant.load_weights(tmp_path / "out")
    assert found.keys() == weights.keys()
    for layer, weight in found.items():
        assert weight.scheme.name.removesuffix("_fp32") == scheme_of(layer).name
        assert torch.equal(weight.codes, weights[layer].codes)
        assert torch.equal(weight.dequantize(), weights[layer].dequantize())
    loaded = quant.load(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    assert inspect(tmp_path / "out").mixture == inspect(folder).mixture


def test_a_format_of_one_scheme_says_which_hold_several(mixed, tmp_path):
    folder, _, _ = mixed
    with pytest.raises(ArtifactError, match=r"several schemes .*8g20_sym.*--format .*gptq-v2"):
        quant.export(folder, tmp_path / "out", "awq")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said", "sentence"),
    [
        ("model.layers.0.mlp.up_proj", {"bits": 16}, "up_proj.qweight, and config.json says that"),
        (WHOLE, {"bits": 8}, f"settings of its own for {WHOLE}, but the files have no quantized"),
        ("model.layers.0.mlp.down_proj", {"bits": 8}, "model.layers.0.mlp.down_proj"),
    ],
)
def test_settings_that_the_tensors_contradict_are_named(mixed, name, said, sentence):
    folder, _, _ = mixed
    edit_config(lambda c: c["quantization_config"]["extra_config"].update({name: said}))(folder)
    with pytest.raises(ArtifactError) as caught:
        quant.load(folder)
    assert sentence in str(caught.value)
