"""Quantized models written, loaded, damaged and loaded again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_weights import random_weight, same
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

import quant
from quant.checkpoint.folder import MANIFEST
from quant.checkpoint.skeleton import parameters_on_meta
from quant.errors import ArtifactError
from quant.linear import QuantLinear
from quant.scheme import Scheme
from quant.weight import QuantizedWeight

SPECIAL = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# 40 inputs and 72 outputs: no multiple of 32 anywhere.
CONFIGS = {
    "opt": OPTConfig(
        hidden_size=40, ffn_dim=72, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=40, **SPECIAL,
    ),
    "llama": LlamaConfig(
        hidden_size=40, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False, **SPECIAL,
    ),
    "gpt2": GPT2Config(n_embd=40, n_inner=72, n_layer=2, n_head=4, n_positions=64, **SPECIAL),
}  # fmt: skip
SCHEMES = [
    Scheme(2),
    Scheme(3),
    Scheme(3, group_size=8),
    Scheme(4, group_size=8, symmetric=True),
    Scheme(4, group_size=8, grid="mse", scale_dtype="bfloat16"),
    Scheme(8, scale_dtype="float32"),
    Scheme(2, group_size=8, levels="ternary"),
]
TOKENS = torch.randint(3, 96, (2, 19), generator=torch.Generator().manual_seed(5))
METHOD = {"name": "random", "seed": 0}

Model = tuple[PreTrainedModel, dict[str, QuantizedWeight]]


def quantized(name: str, scheme: Scheme, scattered: bool = False) -> Model:
    """A tiny model holding the values of random quantized weights in the layers of its blocks."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    weights = {}
    for index, (layer, module) in enumerate(model.named_modules()):
        if not isinstance(module, nn.Linear | Conv1D) or layer == "lm_head":
            continue
        transposed = isinstance(module, Conv1D)
        outputs, inputs = module.weight.shape[::-1] if transposed else module.weight.shape
        weight = random_weight(scheme, outputs, inputs, scattered=scattered, seed=index)
        values = weight.dequantize()
        module.weight.data.copy_(values.t() if transposed else values)
        weights[layer] = weight
    return model, weights


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact of the tiny OPT model at 3 bits in groups of 8."""
    model, weights = quantized("opt", Scheme(3, group_size=8))
    return quant.save(tmp_path / "artifact", model, weights, method=METHOD)


CASES = [("llama", scheme, False) for scheme in SCHEMES]
CASES += [(name, SCHEMES[i], i % 2 == 0) for name in ("opt", "gpt2") for i in (2, 6)]
CASES += [("llama", SCHEMES[3], True), ("gpt2", SCHEMES[1], False)]


@pytest.mark.parametrize(("name", "scheme", "scattered"), CASES)
def test_loaded_model_is_the_model_of_the_values(
    tmp_path: Path, name: str, scheme: Scheme, scattered: bool
) -> None:
    model, weights = quantized(name, scheme, scattered)
    folder = quant.save(tmp_path / "artifact", model, weights, method=METHOD)
    loaded = quant.load(folder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    layers = {n: m for n, m in loaded.named_modules() if isinstance(m, QuantLinear)}
    assert layers.keys() == weights.keys()
    assert all(same(layers[layer].quantized_weight(), weights[layer]) for layer in weights)
    stored = quant.load_weights(folder)
    assert all(same(stored[layer], weights[layer]) for layer in weights)
    assert not loaded.training
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


def test_the_folder_is_a_normal_one(artifact: Path) -> None:
    assert sorted(path.name for path in artifact.iterdir()) == [
        "artifact.json", "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    config = json.loads((artifact / "config.json").read_text())
    assert config["architectures"] == ["OPTForCausalLM"]
    described = config["quantization_config"]
    producer = described["meta"].pop("producer")
    assert producer.startswith("bitsweep ")
    assert described == {
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2",
        "bits": 3,
        "group_size": 8,
        "sym": False,
        "desc_act": False,
        "static_groups": False,
        "true_sequential": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "modules_in_block_to_quantize": [
            [
                "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj",
                "self_attn.out_proj", "fc1", "fc2",
            ]
        ],
        "meta": {"grid": "minmax", "method": METHOD},
    }  # fmt: skip
    tensors = load_file(artifact / "model.safetensors")
    layer = "model.decoder.layers.0.fc1"
    kinds = {n: t.dtype for n, t in tensors.items() if n.startswith(f"{layer}.")}
    assert kinds == {
        f"{layer}.qweight": torch.int32,
        f"{layer}.qzeros": torch.int32,
        f"{layer}.scales": torch.float16,
        f"{layer}.g_idx": torch.int32,
        f"{layer}.bias": torch.float32,
    }
    assert tensors[f"{layer}.g_idx"].tolist() == [i // 8 for i in range(40)]
    # The output layer is tied to the embedding and written once.
    assert "lm_head.weight" not in tensors
    assert "model.decoder.embed_tokens.weight" in tensors


def test_other_loaders_refuse_ternary_levels(tmp_path: Path) -> None:
    """By its quant_method (vLLM, GPTQModel), and transformers, which ignores that, by its files."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    model, weights = quantized("opt", Scheme(2, levels="ternary"))
    for limit in (10**9, 20_000):
        folder = tmp_path / str(limit)
        quant.save(folder, model, weights, method=METHOD, max_shard_bytes=limit)
        described = AutoConfig.from_pretrained(folder).quantization_config
        assert described["quant_method"] == "bitsweep_ternary"
        assert described["quant_method"] not in AUTO_QUANTIZATION_CONFIG_MAPPING
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(logits(quant.load(folder)), logits(model), rtol=0, atol=1e-5)


def test_full_precision_tensors_keep_their_dtype(tmp_path: Path) -> None:
    model, weights = quantized("llama", Scheme(4, group_size=8))
    model = model.to(torch.bfloat16)
    folder = quant.save(tmp_path / "artifact", model, weights, method=METHOD)
    loaded = quant.load(folder)
    assert loaded.dtype == loaded.lm_head.weight.dtype == torch.bfloat16
    assert logits(loaded).dtype == torch.bfloat16
    wide = quant.load(folder, dtype=torch.float32)
    assert wide.dtype == wide.config.dtype == torch.float32
    q_proj = wide.model.layers[0].self_attn.q_proj
    assert q_proj.scales.dtype == torch.float16
    expected, _ = quantized("llama", Scheme(4, group_size=8))
    for name, parameter in expected.named_parameters():
        if name.removesuffix(".weight") not in weights:
            parameter.data = parameter.data.to(torch.bfloat16).float()
    torch.testing.assert_close(logits(wide), logits(expected), rtol=0, atol=1e-5)


def test_tied_embeddings_stay_tied(artifact: Path) -> None:
    loaded = quant.load(artifact)
    assert loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight


def test_buffers_that_are_computed_are_real(tmp_path: Path) -> None:
    model, weights = quantized("llama", Scheme(4))
    loaded = quant.load(quant.save(tmp_path / "a", model, weights, method=METHOD))
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    with parameters_on_meta():
        module = nn.BatchNorm1d(4)
    assert module.weight.is_meta
    assert module.running_var.tolist() == [1.0] * 4
    assert not nn.Linear(2, 2).weight.is_meta


def test_shards_are_loaded(tmp_path: Path) -> None:
    model, weights = quantized("opt", Scheme(4))
    folder = tmp_path / "a"
    quant.save(folder, model, weights, method=METHOD, max_shard_bytes=20_000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(quant.load(folder, kernel="reference")), logits(model))
    assert len(quant.load_weights(folder)) == len(weights)


def test_a_loaded_model_can_be_saved_again(artifact: Path, tmp_path: Path) -> None:
    loaded = quant.load(artifact)
    again = quant.save(tmp_path / "b", loaded, quant.load_weights(artifact), method=METHOD)
    first, second = (load_file(f / "model.safetensors") for f in (artifact, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_model_does_not_depend_on_its_files(artifact: Path) -> None:
    loaded = quant.load(artifact)
    before = logits(loaded)
    (artifact / "model.safetensors").write_bytes(b"")
    assert torch.equal(logits(loaded), before)


def test_tokenizer_files_are_copied_unchanged(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text('{"model": 1}')
    (source / "tokenizer_config.json").write_text("{}")
    (source / "model.safetensors").write_text("not this one")
    model, weights = quantized("opt", Scheme(4))
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD, tokenizer=source)
    assert (folder / "tokenizer.json").read_text() == '{"model": 1}'
    assert (folder / "tokenizer_config.json").is_file()
    quant.load(folder)
    with pytest.raises(ArtifactError, match=r"no tokenizer files .* in .*nowhere"):
        quant.save(tmp_path / "b", model, weights, method=METHOD, tokenizer=tmp_path / "nowhere")
    assert not (tmp_path / "b").exists()


def test_a_tokenizer_object_is_saved(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    model, weights = quantized("opt", Scheme(4))
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD, tokenizer=tokenizer)
    assert "tokenizer.json" in json.loads((folder / MANIFEST).read_text())["files"]


def test_weights_that_do_not_fit_the_model(tmp_path: Path) -> None:
    model, weights = quantized("opt", Scheme(4))
    name = "model.decoder.layers.0.fc1"

    def saving(changed: dict[str, QuantizedWeight], message: str, method: Any = None) -> None:
        with pytest.raises(ArtifactError, match=message):
            quant.save(tmp_path / "a", model, changed, method=method or METHOD)
        assert not (tmp_path / "a").exists()

    saving({}, "no quantized weights to write")
    saving({**weights, "nowhere": weights[name]}, "OPTForCausalLM has no layer nowhere")
    saving({**weights, name: random_weight(Scheme(4), 40, 72)}, r"fc1 is \[40, 72\], but the layer")
    saving({**weights, name: random_weight(Scheme(3), 72, 40)}, "is w4 and .*fc1 is w3; the GPTQ")
    saving({"model.decoder": weights[name]}, "model.decoder is a OPTDecoder; only nn.Linear")
    saving(weights, r"method=.* cannot be written as JSON", {"path": Path()})


@pytest.mark.parametrize("verified", [True, False])
def test_a_truncated_file(artifact: Path, verified: bool) -> None:
    path = artifact / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = r"model.safetensors (has .* bytes instead of|cannot be read).*quantize again"
    with pytest.raises(ArtifactError, match=message):
        quant.load(artifact, verify_files=verified)


def test_a_flipped_bit(artifact: Path) -> None:
    path = artifact / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    for read in (quant.load, quant.load_weights):
        with pytest.raises(ArtifactError, match=r"sha256 differs from artifact.json.*Delete"):
            read(artifact)


def test_a_missing_manifest(artifact: Path) -> None:
    (artifact / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"artifact.json is missing"):
        quant.load(artifact)
    quant.load(artifact, verify_files=False)


def test_no_artifact_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder; quantize a model into it"):
        quant.load(tmp_path / "nowhere")
    (tmp_path / ".gone.replaced-host-1").mkdir()
    with pytest.raises(ArtifactError, match=r"killed left it at .*\.gone\.replaced-host-1"):
        quant.load(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"config.json does not exist"):
        quant.load(tmp_path)


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return apply


def edit_tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


FC1 = "model.decoder.layers.0.fc1"
NORM = "model.decoder.final_layer_norm.weight"
DAMAGES = {
    "unquantized": (
        edit_config(lambda c: c.pop("quantization_config")),
        "config.json has no quantization_config: the model is not quantized. Load it with",
    ),
    "not json": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read as JSON",
    ),
    "unknown model": (
        edit_config(lambda c: c.update(model_type="teapot")),
        "does not describe a model that transformers .* knows: .*teapot",
    ),
    "unknown class": (
        edit_config(lambda c: c.update(architectures=["TeapotForCausalLM"])),
        r"architectures=\['TeapotForCausalLM'\] is not a model of transformers",
    ),
    "other bits": (
        edit_config(lambda c: c["quantization_config"].update(bits=4)),
        r"fc1.qweight is \[4, 72\].*scheme w4g8 make \[5, 72\]",
    ),
    "other width": (
        edit_config(lambda c: c.update(ffn_dim=64)),
        r"fc1.qweight is \[4, 72\], but 40 inputs, 64 outputs",
    ),
    "fewer blocks": (
        edit_config(lambda c: c.update(num_hidden_layers=1)),
        r"holds model.decoder.layers.1.*qweight, but OPTForCausalLM has no such layer",
    ),
    "more blocks": (
        edit_config(lambda c: c.update(num_hidden_layers=3)),
        r"tensor model.decoder.layers.2.* is in none of its files",
    ),
    "other vocabulary": (
        edit_config(lambda c: c.update(vocab_size=97)),
        r"embed_tokens.weight is \[96, 40\], but config.json makes it \[97, 40\]",
    ),
    "no norm": (
        edit_tensors(lambda t: t.pop(NORM)),
        r"tensor model.decoder.final_layer_norm.weight is in none of its files",
    ),
    "no bias": (edit_tensors(lambda t: t.pop(f"{FC1}.bias")), r"tensor .*fc1.bias is in none"),
    "long bias": (
        edit_tensors(lambda t: t.update({f"{FC1}.bias": torch.zeros(9)})),
        r"fc1.bias is \[9\], but config.json makes it \[72\]",
    ),
    "no scales": (
        edit_tensors(lambda t: t.pop(f"{FC1}.scales")),
        r"tensor .*fc1.scales is missing; the layer has g_idx, qweight, qzeros",
    ),
    "integer norm": (
        edit_tensors(lambda t: t.update({NORM: torch.ones(40).int()})),
        r"final_layer_norm.weight is torch.int32, but the model has torch.float32",
    ),
    "stray tensor": (
        edit_tensors(lambda t: t.update(stray=torch.zeros(1))),
        r"model.safetensors holds stray, which OPTForCausalLM does not have",
    ),
    "nothing quantized": (
        edit_tensors(lambda t: [t.pop(n) for n in list(t) if n.endswith(".qweight")]),
        r"holds no quantized layer \(no tensor ends in .qweight\)",
    ),
    "no tensors": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "holds 0 .safetensors files",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(artifact: Path, damage: str) -> None:
    """Without checksums, as in a checkpoint of another producer."""
    apply, message = DAMAGES[damage]
    apply(artifact)
    with pytest.raises(ArtifactError, match=message):
        quant.load(artifact, verify_files=False)
    with pytest.raises(ArtifactError):
        quant.load(artifact)


def test_checkpoints_of_other_producers_load(artifact: Path) -> None:
    """Version 1 zero-points, a bias for every layer, stored buffers, AutoGPTQ's file name."""
    expected = logits(quant.load(artifact))
    tensors = load_file(artifact / "model.safetensors")
    from cuda_ext.layout import pack_codes, unpack_codes

    for name in [n for n in tensors if n.endswith(".qzeros")]:
        outputs = tensors[name.replace("qzeros", "scales")].shape[1]
        zeros = unpack_codes(tensors[name], 3, outputs)
        tensors[name] = pack_codes((zeros - 1) & 7, 3)
    (artifact / "model.safetensors").unlink()
    (artifact / MANIFEST).unlink()
    save_file(tensors, artifact / "gptq_model-3bit-8g.safetensors")
    edit_config(
        lambda c: c.update(
            quantization_config={
                "quant_method": "gptq", "bits": 3, "group_size": 8, "sym": False, "desc_act": False,
            }
        )
    )(artifact)  # fmt: skip
    assert torch.equal(logits(quant.load(artifact)), expected)


def test_a_bias_that_the_model_does_not_have_is_used(tmp_path: Path) -> None:
    model, weights = quantized("llama", Scheme(4))
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD)
    layer = "model.layers.0.mlp.up_proj"
    edit_tensors(lambda t: t.update({f"{layer}.bias": torch.ones(72)}))(folder)
    loaded = quant.load(folder, verify_files=False)
    assert loaded.get_submodule(layer).bias.tolist() == [1.0] * 72
    model.get_submodule(layer).bias = nn.Parameter(torch.ones(72))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_awq_folder_loads(tmp_path: Path) -> None:
    """The same model in AWQ's packing has the same logits."""
    from cuda_ext.layout import pack_codes
    from quant.checkpoint.awq import NIBBLES

    model, weights = quantized("llama", Scheme(4, group_size=8))
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD)
    expected = logits(quant.load(folder))

    def words(codes: Tensor) -> Tensor:
        # Nibble NIBBLES[j] holds output j: nibble k holds the output at argsort(NIBBLES)[k].
        order = torch.tensor(NIBBLES).argsort()
        return pack_codes(codes.unflatten(1, (-1, 8))[..., order].flatten(1), 4)

    def repack(tensors: dict[str, Tensor]) -> None:
        for layer, weight in weights.items():
            assert weight.zero is not None
            del tensors[f"{layer}.g_idx"]
            tensors[f"{layer}.qweight"] = words(weight.codes.t())
            tensors[f"{layer}.qzeros"] = words(weight.zero.t())

    edit_tensors(repack)(folder)
    (folder / MANIFEST).unlink()
    awq = {"quant_method": "awq", "bits": 4, "group_size": 8, "zero_point": True}
    edit_config(lambda c: c.update(quantization_config=awq))(folder)
    assert torch.equal(logits(quant.load(folder)), expected)
    assert all(same(w, weights[n]) for n, w in quant.load_weights(folder).items())
    edit_config(lambda c: c.update(intermediate_size=64))(folder)
    with pytest.raises(ArtifactError, match=r"mlp.*_proj is .* but its config.json makes it"):
        quant.load(folder)


def test_a_killed_writer_leaves_the_earlier_artifact(artifact: Path) -> None:
    """kill -9 in the middle of the tensors, in a process of its own; the next save cleans up."""
    script = f"""
import os, signal
from pathlib import Path
from quant.checkpoint.folder import replace_folder
with replace_folder(Path({str(artifact)!r}), 100) as partial:
    (partial / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert done.returncode == -9
    assert len(list(artifact.parent.iterdir())) == 2
    before = logits(quant.load(artifact))
    model, weights = quantized("opt", Scheme(3, group_size=8))
    quant.save(artifact, model, weights, method=METHOD)
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]
    assert torch.equal(logits(quant.load(artifact)), before)


def test_importing_quant_is_cheap() -> None:
    code = "import sys, quant; print(any(n in sys.modules for n in ('torch', 'transformers')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    assert set(quant.__all__) == set(quant._HOME)
    assert all(hasattr(quant, name) for name in quant.__all__)
    with pytest.raises(AttributeError, match="no attribute 'teapot'"):
        _ = quant.teapot
