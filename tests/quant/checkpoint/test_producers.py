"""Folders as other tools write them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import quant
from quant.checkpoint.folder import MANIFEST
from quant.errors import ArtifactError
from quant.scheme import Scheme
from tests.oracles.random_weights import same
from tests.quant.tiny_checkpoints import (
    METHOD,
    edit_config,
    edit_tensors,
    logits,
    pack_awq,
    quantized,
)


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
                "checkpoint_format": "gptq",
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
    model, weights = quantized("llama", Scheme(4, group_size=8))
    folder = quant.save(tmp_path / "a", model, weights, method=METHOD)
    expected = logits(quant.load(folder))
    pack_awq(folder, weights)
    (folder / MANIFEST).unlink()
    assert torch.equal(logits(quant.load(folder)), expected)
    assert all(same(w, weights[n]) for n, w in quant.load_weights(folder).items())
    edit_config(lambda c: c.update(intermediate_size=64))(folder)
    with pytest.raises(ArtifactError, match=r"mlp.*_proj.* codes, but config.json makes it"):
        quant.load(folder)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_configurations_in_a_file_of_their_own(tmp_path: Path, method: str) -> None:
    """AutoGPTQ's quantize_config.json and AutoAWQ's quant_config.json."""
    model, weights = quantized("llama", Scheme(4, group_size=8))
    for weight in weights.values():
        weight.zero.clamp_(min=1)
    artifact = quant.save(tmp_path / "a", model, weights, method=METHOD)
    folder = quant.export(artifact, tmp_path / "b", "gptq-v1").folder
    (folder / MANIFEST).unlink()
    if method == "awq":
        pack_awq(folder, weights)
        own = {"zero_point": True, "q_group_size": 8, "w_bit": 4, "version": "GEMM"}
        (folder / "quant_config.json").write_text(json.dumps(own))
    else:
        own = {"bits": 4, "group_size": 8, "damp_percent": 0.01, "desc_act": False, "sym": False}
        (folder / "quantize_config.json").write_text(json.dumps(own))
    edit_config(lambda c: c.pop("quantization_config"))(folder)
    assert all(same(w, weights[n]) for n, w in quant.load_weights(folder).items())
