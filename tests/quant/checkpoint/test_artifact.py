"""Quantized models written as a folder and loaded again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import quant
from quant.checkpoint.folder import MANIFEST
from quant.checkpoint.skeleton import parameters_on_meta
from quant.errors import ArtifactError
from quant.linear import QuantLinear
from quant.scheme import Scheme
from quant.weight import QuantizedWeight
from tests.oracles.random_weights import random_weight, same
from tests.quant.tiny_checkpoints import METHOD, logits, quantized

SCHEMES = [
    Scheme(2),
    Scheme(3),
    Scheme(3, group_size=8),
    Scheme(4, group_size=8, symmetric=True),
    Scheme(4, group_size=8, grid="mse", scale_dtype="bfloat16"),
    Scheme(8, scale_dtype="float32"),
    Scheme(2, group_size=8, levels="ternary"),
]

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
        "README.md", "artifact.json", "config.json", "generation_config.json", "model.safetensors",
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
    three = random_weight(Scheme(2, levels="ternary"), 72, 40)
    saving({**weights, name: three}, r"layers\[.*fc1\]=ternary has ternary levels, and the other")
    saving({"model.decoder": weights[name]}, "model.decoder is a OPTDecoder; only nn.Linear")
    saving(weights, r"method=.* cannot be written as JSON", {"path": Path()})


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
