"""Whole folders written again in every format: the same model, whole or not at all."""

import json
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import quant
from quant.checkpoint import verify
from quant.checkpoint.folder import MANIFEST
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.weight import QuantizedWeight
from tests import warm
from tests.oracles.random_weights import same
from tests.quant.tiny_checkpoints import (
    METHOD,
    edit_config,
    edit_tensors,
    logits,
    pack_awq,
    quantized,
)

Weights = dict[str, QuantizedWeight]
FORMATS = ("gptq-v1", "gptq-v2", "compressed-tensors")
OF_FOUR_BITS = (*FORMATS, "awq")


def artifact_of(
    folder: Path, name: str, scheme: Scheme, scattered: bool = False
) -> tuple[Path, Weights]:
    """A saved model without zero-points of 0, with the files of a tokenizer."""
    model, weights = quantized(name, scheme, scattered)
    for weight in weights.values():
        if weight.zero is not None:
            weight.zero.clamp_(min=1)
    source = folder / "tokenizer"
    source.mkdir(exist_ok=True)
    (source / "tokenizer.json").write_text('{"model": 1}')
    return quant.save(folder / "a", model, weights, method=METHOD, tokenizer=source), weights


def same_values(left: Weights, right: Weights) -> bool:
    """The same codes, zero-points and values of scales, whose type may be wider."""

    def widened(weight: QuantizedWeight) -> QuantizedWeight:
        scheme = Scheme(weight.scheme.bits, weight.scheme.group_size, weight.scheme.symmetric)
        scale, zero = weight.scale.float(), weight.zero
        return QuantizedWeight(weight.codes, scheme, weight.group_index, scale=scale, zero=zero)

    return left.keys() == right.keys() and all(
        same(widened(left[layer]), widened(right[layer])) for layer in left
    )


@pytest.mark.parametrize("name", ["opt", "llama"])
@pytest.mark.parametrize(
    "scheme",
    [Scheme(2), Scheme(3, group_size=8), Scheme(4, group_size=8, symmetric=True), Scheme(8)],
)
def test_from_format_to_format(tmp_path: Path, name: str, scheme: Scheme) -> None:
    """Through every format and back to the first: nothing has changed on the way."""
    artifact, weights = artifact_of(tmp_path, name, scheme)
    expected = logits(quant.load(artifact, kernel="reference"))
    folder = artifact
    for step, format in enumerate((*FORMATS, "gptq-v1", "compressed-tensors", "gptq-v2")):
        exported = quant.export(folder, tmp_path / str(step), format)
        folder = exported.folder
        assert verify(folder)
        assert exported.layers == len(weights)
        assert same_values(quant.load_weights(folder), weights)
        assert torch.equal(logits(quant.load(folder, kernel="reference")), expected)
        assert (folder / "tokenizer.json").read_text() == '{"model": 1}'
        before, after = ((f / "generation_config.json").read_text() for f in (artifact, folder))
        assert before == after


def test_what_is_in_the_files(tmp_path: Path) -> None:
    artifact, _ = artifact_of(tmp_path, "opt", Scheme(4, group_size=8))
    folder = quant.export(artifact, tmp_path / "b", "compressed-tensors").folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "artifact.json", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json",
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    described = config.pop("quantization_config")
    meta = described.pop("meta")
    assert meta.pop("producer").startswith("bitsweep ")
    assert meta == {"grid": "minmax", "method": METHOD}
    assert described == {
        "quant_method": "compressed-tensors",
        "dequantize": True,
        "version": "0.20.0",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group",
                    "group_size": 8, "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }  # fmt: skip
    original = json.loads((artifact / "config.json").read_text())
    del original["quantization_config"]
    assert config == original
    tensors = load_file(folder / "model.safetensors")
    layer = "model.decoder.layers.0.fc1"
    found = {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items() if n.startswith(f"{layer}.")}
    assert found == {
        f"{layer}.weight_packed": (torch.int32, (72, 5)),
        f"{layer}.weight_scale": (torch.float32, (72, 5)),  # of the model, whose type holds them
        f"{layer}.weight_zero_point": (torch.int32, (9, 5)),
        f"{layer}.weight_shape": (torch.int64, (2,)),
        f"{layer}.bias": (torch.float32, (72,)),
    }
    assert tensors[f"{layer}.weight_shape"].tolist() == [72, 40]
    assert "lm_head.weight" not in tensors, "tied to the embedding"


def test_shards(tmp_path: Path) -> None:
    artifact, weights = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    for format in OF_FOUR_BITS:
        folder = quant.export(artifact, tmp_path / format, format, max_shard_bytes=20_000).folder
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        assert same_values(quant.load_weights(folder), weights)


def test_scattered_groups_keep_their_g_idx(tmp_path: Path) -> None:
    artifact, weights = artifact_of(tmp_path, "llama", Scheme(4, group_size=8), scattered=True)
    for format in ("gptq-v1", "gptq-v2"):
        folder = quant.export(artifact, tmp_path / format, format).folder
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert config["desc_act"] is True
        assert same_values(quant.load_weights(folder), weights)
    with pytest.raises(
        ArtifactError, match=r"scattered, .*gptq-v2, or .*method.static_groups=true"
    ):
        quant.export(artifact, tmp_path / "ct", "compressed-tensors")
    assert not (tmp_path / "ct").exists()


def test_conv1d_layers(tmp_path: Path) -> None:
    artifact, weights = artifact_of(tmp_path, "gpt2", Scheme(4, group_size=8))
    folder = quant.export(artifact, tmp_path / "v1", "gptq-v1").folder
    assert same_values(quant.load_weights(folder), weights)
    with pytest.raises(ArtifactError, match=r"c_attn is a Conv1D.*: export to gptq-v2"):
        quant.export(artifact, tmp_path / "ct", "compressed-tensors")


def test_what_formats_cannot_hold(tmp_path: Path) -> None:
    model, weights = quantized("llama", Scheme(2, group_size=8, levels="ternary"))
    ternary = quant.save(tmp_path / "ternary", model, weights, method=METHOD)
    for format in OF_FOUR_BITS:
        with pytest.raises(ArtifactError, match=rf"ternary levels, .*{format} cannot store.*w2g64"):
            quant.export(ternary, tmp_path / "out", format)
    model, weights = quantized("llama", Scheme(4))
    zeros = quant.save(tmp_path / "zeros", model, weights, method=METHOD)
    with pytest.raises(ArtifactError, match=r"qzeros: \d+ zero-points are 0.*: export to gptq-v2"):
        quant.export(zeros, tmp_path / "out", "gptq-v1")
    known = "awq, bitsweep, bitsweep-ternary, compressed-tensors, gguf, gptq-v1, gptq-v2"
    with pytest.raises(ArtifactError, match=rf"'ggml' is unknown; choose one of {known}\."):
        quant.export(zeros, tmp_path / "out", "ggml")
    with pytest.raises(ArtifactError, match="is the checkpoint itself; write the export elsewhere"):
        quant.export(zeros, tmp_path / "." / "zeros", "gptq-v2")
    with pytest.raises(ArtifactError, match="is not a folder"):
        quant.export(tmp_path / "nowhere", tmp_path / "out", "gptq-v2")
    assert not (tmp_path / "out").exists()


def test_awq_becomes_another_format(tmp_path: Path) -> None:
    artifact, weights = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    pack_awq(artifact, weights)
    (artifact / MANIFEST).unlink()
    for format in OF_FOUR_BITS:
        folder = quant.export(artifact, tmp_path / format, format).folder
        assert same_values(quant.load_weights(folder), weights)
        meta = json.loads((folder / "config.json").read_text())["quantization_config"]["meta"]
        assert meta["method"] == {"name": "unknown", "source": "AWQ gemm, unnamed"}


def test_biases_that_the_model_does_not_have(tmp_path: Path) -> None:
    """AutoGPTQ's zeros are left out; anything else would be lost in silence."""
    artifact, _ = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    bias = "model.layers.0.mlp.up_proj.bias"
    edit_tensors(lambda t: t.update({bias: torch.zeros(72)}))(artifact)
    folder = quant.export(artifact, tmp_path / "b", "compressed-tensors", verify_files=False).folder
    assert bias not in load_file(folder / "model.safetensors")
    edit_tensors(lambda t: t.update({bias: torch.ones(72)}))(artifact)
    with pytest.raises(ArtifactError, match=rf"{bias} is not zero, but LlamaForCausalLM has no"):
        quant.export(artifact, tmp_path / "c", "compressed-tensors", verify_files=False)


def test_a_damaged_source_leaves_what_was_there(tmp_path: Path) -> None:
    artifact, weights = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    target = quant.export(artifact, tmp_path / "out", "gptq-v1").folder
    edit_config(lambda c: c.update(intermediate_size=64))(artifact)
    with pytest.raises(ArtifactError, match=r"config\.json is not what was|config\.json has"):
        quant.export(artifact, target, "gptq-v2", overwrite=True)
    with pytest.raises(ArtifactError, match=r"mlp.*_proj"):
        quant.export(artifact, target, "gptq-v2", overwrite=True, verify_files=False)
    assert same_values(quant.load_weights(target), weights)
    assert not list(tmp_path.glob(".out*"))


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    artifact, _ = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    with pytest.raises(ArtifactError, match="not an artifact written by Bitsweep"):
        quant.export(artifact, tmp_path / "tokenizer", "gptq-v2", overwrite=True)


def test_a_model_that_a_killed_writer_moved_aside_is_not_replaced_unasked(tmp_path: Path) -> None:
    artifact, weights = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    target = quant.export(artifact, tmp_path / "out", "gptq-v1").folder
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    target.rename(tmp_path / f".out.replaced-{platform.node()}-{process.pid}")
    with pytest.raises(ArtifactError, match=r"contains a quantized model \(GPTQ v1, 4 bits"):
        quant.export(artifact, target, "gptq-v2")
    assert same_values(quant.load_weights(target), weights)


def test_a_killed_export_leaves_what_was_there(tmp_path: Path) -> None:
    """kill -9 at the second shard, in a process of its own; the next export cleans up."""
    artifact, weights = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    target = quant.export(artifact, tmp_path / "out", "gptq-v1").folder
    script = f"""
import os, signal
import quant.checkpoint.tensors as tensors
save, calls = tensors.save_file, []
def save_or_die(*args, **options):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(*args, **options)
tensors.save_file = save_or_die
import quant
quant.export({str(artifact)!r}, {str(target)!r}, "gptq-v2", overwrite=True, max_shard_bytes=20_000)
"""
    done = warm.run(["-c", script])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".out*"))) == 1
    assert quant.checkpoint.read_format(target).name == "GPTQ v1"
    quant.export(artifact, target, "gptq-v2", overwrite=True)
    assert quant.checkpoint.read_format(target).name == "GPTQ v2"
    assert same_values(quant.load_weights(target), weights)
    assert not list(tmp_path.glob(".out*"))


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, _ = artifact_of(tmp_path, "llama", Scheme(4, group_size=8))
    usage = type(shutil.disk_usage(tmp_path))(1000, 950, 50)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ArtifactError, match="the disk has 50 bytes free"):
        quant.export(artifact, tmp_path / "out", "gptq-v2")
    assert not (tmp_path / "out").exists()
