"""Models of the hub: with their id, and without a network."""

from pathlib import Path

import pytest

from harness.config.schema import ModelConfig
from harness.errors import ModelError
from harness.models.model import AbsentModel, find_model


def test_a_hub_model_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = ModelConfig(name="opt", source="hub", id="nobody/never-downloaded")
    assert find_model(config) == AbsentModel(config)
    with pytest.raises(ModelError, match=r"nobody/never-downloaded.*model=local model\.path"):
        find_model(config, download=True)


def test_a_hub_model_needs_an_id() -> None:
    with pytest.raises(ModelError, match=r"model\.id=OWNER/NAME"):
        find_model(ModelConfig(name="hub", source="hub"))
