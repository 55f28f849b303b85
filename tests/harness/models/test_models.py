"""Models that are complete, incomplete, or not there."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import cli
from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.models.checkpoints import load_packed
from harness.models.folders import (
    folder_fingerprint,
    load_model,
    load_tokenizer,
    weights_read,
)
from harness.models.model import AbsentModel, StoredModel, find_model
from harness.models.streaming import open_source
from harness.models.whole import require_whole
from harness.records import hashes
from harness.records.hashes import file_sha256
from quant.checkpoint.make import quantize_to
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import rtn


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    return folder


def local(path: Path | None) -> ModelConfig:
    return ModelConfig(name="x", source="local", path=None if path is None else str(path))


def test_the_embedded_model_is_found_without_importing_it() -> None:
    model = find_model(ModelConfig(name="embedded", source="embedded"))
    assert isinstance(model, StoredModel)
    assert (model.folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("remove", "missing"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_what_is_missing_is_named(copy: Path, remove: str, missing: str) -> None:
    (copy / remove).unlink()
    with pytest.raises(ModelError, match=missing) as caught:
        find_model(local(copy))
    assert str(copy) in str(caught.value)


def test_a_config_that_is_no_json(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        find_model(local(copy))


def test_no_folder_and_no_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"add model\.path=FOLDER"):
        find_model(local(None))
    with pytest.raises(ModelError, match="is not a folder"):
        find_model(local(tmp_path / "nowhere"))


def test_truncated_weights_are_refused_with_the_next_step(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModelError, match="fetch or copy them again"):
        load_model(copy, local(copy))


def test_a_broken_tokenizer_is_refused_with_the_next_step(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="tokenizer could not be read"):
        load_tokenizer(copy, local(copy))


def test_a_model_loads_as_configured(copy: Path) -> None:
    config = local(copy)
    config.dtype, config.attention = "bfloat16", "eager"
    model = load_model(copy, config)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert load_tokenizer(copy, config)("Tom had").input_ids


def test_the_fingerprint_follows_contents_not_places(copy: Path, tmp_path: Path) -> None:
    before = folder_fingerprint(copy)
    moved = tmp_path / "moved"
    shutil.copytree(copy, moved)
    assert folder_fingerprint(moved) == before
    (moved / "README.md").write_text("a note")
    assert folder_fingerprint(moved) == before
    tokenizer = moved / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert folder_fingerprint(moved) != before


def test_contents_are_hashed_whatever_a_link_s_target_is_called(tmp_path: Path) -> None:
    blob = tmp_path / ("ab" * 32)
    link = tmp_path / "model.safetensors"
    os.symlink(blob, link)
    for text in (b"first", b"other"):
        blob.write_bytes(text)
        assert file_sha256(link) == hashlib.sha256(text).hexdigest()


def test_unchanged_files_are_not_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", 0.0)
    read, reads = hashes._read, []
    monkeypatch.setattr(hashes, "_read", lambda place: reads.append(place) or read(place))
    file = tmp_path / "weights"
    for content in (b"a" * 2**20, b"b" * 2**20):
        file.write_bytes(content)
        os.utime(file, ns=(0, 0))  # as a copy that keeps the time of its source
        for _ in range(2):
            hashes._kept.cache_clear()  # another process
            assert file_sha256(file) == hashlib.sha256(content).hexdigest()
    assert len(reads) == 2
    for kept in (tmp_path / "cache" / "hashes").iterdir():
        assert str(tmp_path) not in kept.read_text()
        kept.write_text("{")
    hashes._kept.cache_clear()
    assert file_sha256(file) == hashlib.sha256(content).hexdigest()


def test_what_the_loader_would_make_up_or_drop_is_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    for change, said in (
        ({name: None, name + "x": tensors[name]}, f"no values for {name} of OPTForCausalLM"),
        ({"stray": torch.ones(2)}, "hold stray, which OPTForCausalLM does not have"),
        ({name: torch.ones(3, 5)}, rf"{name} \[3, 5\], which is another shape"),
    ):
        changed = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(ModelError, match=said) as loaded:
            load_model(copy, local(copy))
        with pytest.raises(ModelError) as planned:
            require_whole(find_model(local(copy)))
        with pytest.raises(ArtifactError) as streamed:
            open_source(find_model(local(copy)), "cpu", copy)
        assert str(loaded.value) == str(planned.value) == str(streamed.value)
    save_file({**tensors, "model.decoder.version": torch.ones(1)}, file, {"format": "pt"})
    keys = weights_read(copy, load_model(copy, local(copy)))["keys"]
    head, embedding = "lm_head.weight", "model.decoder.embed_tokens.weight"
    assert keys == {
        head: f"tied to {embedding}",
        "model.decoder.version": "a mark of its converter",
    }


def test_other_files_of_weights_are_told(copy: Path) -> None:
    save_file({"x": torch.ones(1)}, copy / "consolidated.safetensors")
    model = find_model(local(copy))
    assert isinstance(model, StoredModel)
    assert "not read: consolidated.safetensors" in (model.ambiguity() or "")
    found = weights_read(copy, load_model(copy, local(copy)))
    assert (found["read"], found["unread"]) == ("model.safetensors", ["consolidated.safetensors"])


CODE = """
from pathlib import Path
from transformers import OPTConfig, OPTForCausalLM
Path({ran!r}).write_text("ran")

class OwnConfig(OPTConfig):
    model_type = "own"

class OwnForCausalLM(OPTForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_when_its_key_says_so(
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    ran = tmp_path / "ran"
    (copy / "own.py").write_text(CODE.format(ran=str(ran)))
    config = json.loads((copy / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto}
    (copy / "config.json").write_text(json.dumps(config))
    chosen = local(copy)
    for attempt in (
        lambda: load_model(copy, chosen),
        lambda: open_source(find_model(chosen), "cpu", tmp_path),
    ):
        with pytest.raises((ModelError, ArtifactError), match=r"model\.trust_remote_code=true"):
            attempt()
    load_tokenizer(copy, chosen)
    assert not ran.exists()

    plain = find_model(chosen)
    chosen.trust_remote_code = True
    trusted = find_model(chosen)
    assert isinstance(plain, StoredModel)
    assert isinstance(trusted, StoredModel)
    assert trusted.fingerprint != plain.fingerprint, "the code decides figures"
    assert trusted.semantics()["trust_remote_code"] is True
    assert type(load_model(copy, chosen)).__name__ == "OwnForCausalLM"
    with open_source(trusted, "cpu", tmp_path) as source:
        assert type(source.model).__name__ == "OwnForCausalLM"
        plan = QuantizationConfig(rtn.SOLVER, Scheme(8))
        artifact = tmp_path / "artifact"
        quantize_to(artifact, source, [], plan, model_hash="x", method={"name": "rtn"})
    assert ran.exists()
    with pytest.raises(ArtifactError, match=r"model\.trust_remote_code=true"):
        load_packed(artifact, "reference", "cpu", "float32", "sdpa")
    packed = load_packed(artifact, "reference", "cpu", "float32", "sdpa", trust=True)
    assert type(packed).__name__ == "OwnForCausalLM"
    verbs = [str(artifact), str(tmp_path / "out"), "--format", "gptq-v1"]
    assert cli.main(["inspect", str(artifact)]) == cli.OK, "it needs no model"
    assert cli.main(["export", *verbs]) == cli.IMPOSSIBLE
    assert "bitsweep export --trust-remote-code" in capsys.readouterr().err
    assert cli.main(["export", *verbs, "--trust-remote-code"]) == cli.OK
    exported = load_packed(tmp_path / "out", "reference", "cpu", "float32", "sdpa", trust=True)
    assert type(exported).__name__ == "OwnForCausalLM"
    (copy / "own.py").write_text(CODE.format(ran=str(ran)) + "# changed")
    changed = find_model(chosen)
    assert isinstance(changed, StoredModel)
    assert changed.fingerprint != trusted.fingerprint
    config["auto_map"]["AutoModelForCausalLM"] = "somebody/else--own.OwnForCausalLM"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="code of another repository"):
        open_source(trusted, "cpu", tmp_path)


def test_a_hub_model_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = ModelConfig(name="opt", source="hub", id="nobody/never-downloaded")
    assert find_model(config) == AbsentModel(config)
    with pytest.raises(ModelError, match=r"nobody/never-downloaded.*model=local model\.path"):
        find_model(config, download=True)


def test_a_hub_model_needs_an_id() -> None:
    with pytest.raises(ModelError, match=r"model\.id=OWNER/NAME"):
        find_model(ModelConfig(name="hub", source="hub"))
