"""Models that are complete, incomplete, or not there."""

import os
import shutil
from pathlib import Path

import pytest

from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.models.folders import folder_fingerprint, load_model, load_tokenizer
from harness.models.model import AbsentModel, StoredModel, find_model
from harness.records.hashes import file_sha256


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
    import torch

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


def test_the_hub_cache_names_large_files_by_their_hash(tmp_path: Path) -> None:
    blob = tmp_path / ("ab" * 32)
    blob.write_text("not what the name says, so it was not read")
    link = tmp_path / "model.safetensors"
    os.symlink(blob, link)
    assert file_sha256(link) == "ab" * 32


def test_a_hub_model_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = ModelConfig(name="opt", source="hub", id="nobody/never-downloaded")
    assert find_model(config) == AbsentModel(config)
    with pytest.raises(ModelError, match=r"nobody/never-downloaded.*model=local model\.path"):
        find_model(config, download=True)


def test_a_hub_model_needs_an_id() -> None:
    with pytest.raises(ModelError, match=r"model\.id=OWNER/NAME"):
        find_model(ModelConfig(name="hub", source="hub"))
