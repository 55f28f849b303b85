"""Which files of a folder are a model's, and what their contents decide."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import ModelError
from harness.models.folders import (
    folder_fingerprint,
    load_model,
    weights_read,
)
from harness.models.model import StoredModel, find_model
from tests.harness.cells import local


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


def test_other_files_of_weights_are_told(copy: Path) -> None:
    save_file({"x": torch.ones(1)}, copy / "consolidated.safetensors")
    model = find_model(local(copy))
    assert isinstance(model, StoredModel)
    assert "not read: consolidated.safetensors" in (model.ambiguity() or "")
    found = weights_read(copy, load_model(copy, local(copy)))
    assert (found["read"], found["unread"]) == ("model.safetensors", ["consolidated.safetensors"])
