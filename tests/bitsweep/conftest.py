"""A model folder so small that quantizing it takes a moment, and a text to calibrate on."""

from pathlib import Path

import pytest

from tests.harness.tiny import save_tiny_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OPT model with the embedded tokenizer: 2 blocks of width 32."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short stories, about a thousand tokens."""
    file = tmp_path_factory.mktemp("texts") / "stories.txt"
    file.write_text("\n\n".join(f"Tom had {n} red apples and Anna saw {n}." for n in range(40)))
    return file
