"""One choice of the files that hold a model's weights, that of transformers."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import _get_resolved_checkpoint_files

import quant
from quant.checkpoint.convert import convert
from quant.checkpoint.files import copyable, weight_files
from quant.checkpoint.make import files_hash, quantize_to
from quant.checkpoint.source import CheckpointSource
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn
from tests.quant.architectures import random_windows, tiny_model

W8 = QuantizationConfig(rtn.SOLVER, Scheme(8))
INDEX = {"metadata": {}, "weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
BIN_INDEX = {"metadata": {}, "weight_map": {"a": "x-2.bin", "b": "x-1.bin"}}
CONTENTS = {
    "model.safetensors": None,
    "model.safetensors.index.json": INDEX,
    "pytorch_model.bin": None,
    "pytorch_model.bin.index.json": BIN_INDEX,
}
STRAYS = ("consolidated.safetensors", "training_state.safetensors", "pytorch_model-ema.bin")


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        content = CONTENTS.get(name)
        (folder / name).write_text("" if content is None else json.dumps(content))
        for shard in (content or {"weight_map": {}})["weight_map"].values():
            (folder / shard).write_text("")
    return folder


def logs(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.stack(random_windows(2))).logits.log_softmax(-1)


def divergence(first: Tensor, second: Tensor) -> float:
    return (first.exp() * (first - second)).sum(-1).mean().item()


def plain(folder: Path) -> Tensor:
    return logs(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def quantized(folder: Path, target: Path) -> Tensor:
    with CheckpointSource(folder, torch.float32) as source:
        quantize_to(target, source, [], W8, model_hash="x", method={"name": "rtn"})
    return logs(quant.load(target))


@pytest.mark.parametrize("chosen", range(16))
@pytest.mark.parametrize("config", [{}, {"transformers_weights": "x-2.safetensors"}])
def test_the_choice_is_that_of_transformers(
    chosen: int, config: dict[str, str], tmp_path: Path
) -> None:
    names = [name for bit, name in enumerate(CONTENTS) if chosen >> bit & 1]
    folder = write(tmp_path / "model", *names, *STRAYS)
    (folder / "config.json").write_text(json.dumps(config))
    if config and not (folder / "x-2.safetensors").is_file():
        (folder / "x-2.safetensors").write_text("")
    explicit = config.get("transformers_weights")
    try:
        expected, _ = _get_resolved_checkpoint_files(
            folder, None, None, None, None, False, explicit
        )
    except OSError:
        with pytest.raises(ArtifactError, match="no weights under a name that transformers reads"):
            weight_files(folder)
        return
    found = weight_files(folder)
    assert [str(path) for path in found.paths] == expected
    assert set(STRAYS) <= set(found.unread)
    assert not set(found.unread) & {*found.names, found.index}
    assert "not read: " in (found.ambiguity() or "")


def test_names_of_quantized_checkpoints_and_what_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "gptq_model-4bit-128g.safetensors")
    with pytest.raises(ArtifactError, match=r"gptq_model-4bit-128g\.safetensors: rename the right"):
        weight_files(folder)
    (folder / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    assert weight_files(folder).names == ("gptq_model-4bit-128g.safetensors",)
    assert weight_files(folder).ambiguity() is None
    write(folder, "model.safetensors")
    assert weight_files(folder).names == ("model.safetensors",)
    write(folder, "adapter_config.json")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json.*merge it into the model"):
        weight_files(folder)
    folder = write(tmp_path / "b", "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(ArtifactError, match="distributed checkpoint"):
        weight_files(folder)
    folder = write(tmp_path / "c", "model.safetensors.index.json")
    (folder / "x-2.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"x-2\.safetensors is missing, but model\.safetensors"):
        weight_files(folder)
    away = {"weight_map": {"a": "../x.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(away))
    with pytest.raises(ArtifactError, match="is outside the folder"):
        weight_files(folder)


def test_a_new_file_beside_an_old_index_is_what_everything_reads(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model("llama", seed=1).save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    old = files_hash(folder)
    new = tiny_model("llama", seed=2)
    new.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").rename(folder / "model.safetensors")
    assert files_hash(folder) != old
    full = plain(folder)
    assert divergence(full, logs(new)) < 1e-9
    assert divergence(full, quantized(folder, tmp_path / "w8")) < 1e-3


@pytest.mark.parametrize("stray", ["consolidated.safetensors", "training_state.safetensors"])
def test_a_stray_second_file_is_left_alone(stray: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model("mistral").save_pretrained(folder)
    save_file({"tok_embeddings.weight": torch.zeros(4, 4)}, folder / stray)
    assert divergence(plain(folder), quantized(folder, tmp_path / "w8")) < 1e-3


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_a_head_that_is_stored_apart_stays_apart(name: str, tmp_path: Path) -> None:
    folder, artifact = tmp_path / "model", tmp_path / "w8"
    model = tiny_model(name, tie_word_embeddings=True)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    head = torch.randn(model.lm_head.weight.shape) * 0.15
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    full = plain(folder)
    assert divergence(full, quantized(folder, artifact)) < 2e-3
    assert torch.equal(quant.load(artifact).lm_head.weight, head)
    said = json.loads((artifact / "config.json").read_text())
    assert said["tie_word_embeddings"] is False

    exported = tmp_path / "exported"
    quant.export(artifact, exported, "gptq-v1")
    assert torch.equal(logs(quant.load(exported)), logs(quant.load(artifact)))
    # Of a foreign checkpoint whose config.json still ties what its files hold apart.
    for place in (artifact, exported):
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    again = quant.load(exported, verify_files=False)
    assert torch.equal(again.lm_head.weight, head)
    quant.export(artifact, tmp_path / "again", "gptq-v2", verify_files=False)
    said = json.loads((tmp_path / "again" / "config.json").read_text())
    assert said["tie_word_embeddings"] is False

    resident = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = quant.quantize_model(resident, [], W8).weights
    quant.save(tmp_path / "saved", resident, weights, method={"name": "rtn"})
    assert torch.equal(quant.load(tmp_path / "saved").lm_head.weight, head)


def test_pickles_with_another_head_say_so_once_converted(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    model = tiny_model("opt")
    model.config.save_pretrained(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for change, tied in ((0.0, True), (0.5, False)):
        state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"] + change
        torch.save(state, folder / "pytorch_model.bin")
        out = convert(folder, tmp_path / f"new-{tied}")
        said = json.loads((out / "config.json").read_text())
        assert said.get("tie_word_embeddings", True) is tied
        assert torch.equal(plain(out), plain(folder))


def test_links_out_of_the_folder_are_not_copied(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not the model's")
    model = tiny_model("opt")
    folder = tmp_path / "hub" / "snapshots" / "abc"
    model.save_pretrained(folder)
    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    os.symlink("../../blobs/1", folder / "tokenizer.json")
    (folder / "tokenizer_notes.md").write_text("in no list")
    weights = quant.quantize_model(model, [], W8).weights
    artifact = quant.save(tmp_path / "a", model, weights, method={"name": "x"}, tokenizer=folder)
    assert (artifact / "tokenizer.json").read_text() == "{}"
    assert not (artifact / "tokenizer.json").is_symlink()
    assert not (artifact / "tokenizer_notes.md").exists()

    os.symlink(secret, folder / "merges.txt")
    os.symlink(secret, artifact / "merges.txt")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused = rf"merges\.txt is a link to {secret}, outside the model's folder"
    for attempt in (
        lambda out: quant.save(out, model, weights, method={"name": "x"}, tokenizer=folder),
        lambda out: quant.export(artifact, out, "gptq-v1"),
        lambda out: convert(folder, out),
        lambda out: copyable(folder, ["merges.txt"]),
    ):
        with pytest.raises(ArtifactError, match=refused):
            attempt(tmp_path / "out")
        assert not (tmp_path / "out").exists()
