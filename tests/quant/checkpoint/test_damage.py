"""Folders that were damaged, or that do not fit their config.json: each is named."""

from pathlib import Path

import pytest
import torch

import quant
from quant.checkpoint.folder import MANIFEST
from quant.errors import ArtifactError
from tests.quant.tiny_checkpoints import edit_config, edit_tensors

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
        r"fc1.bias is \[72\], but config.json makes it \[64\]",
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
        r"has no quantized layer \(no tensor ends in .qweight\)",
    ),
    "no tensors": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "has no weights",
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
    with pytest.raises(ArtifactError, match=r"killed writer left it at .*\.gone\.replaced-host-1"):
        quant.load(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"config.json does not exist"):
        quant.load(tmp_path)
