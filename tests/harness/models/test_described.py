"""What config.json says is judged before transformers reads it, and plan says what run would."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cell import fits
from harness.cell.cells import ResolvedCell
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.errors import BitsweepError, ConfigError, ModelError
from harness.models.dummy import WITHOUT_SDPA
from harness.models.folders import check_folder
from tests.harness.cells import cell_of

Make = Callable[..., CellConfig]
Change = Callable[[str, Any], Path]


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Change:
    """changed("hidden_size", -1): a copy of the tiny model whose config.json says so."""

    def make(key: str, value: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder)
        config = json.loads((folder / "config.json").read_text())
        config[key] = value
        if value is None:
            del config[key]
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_hidden_layers", 0, "num_hidden_layers=0, which must be 1 to 10000"),
        ("num_hidden_layers", 10**7, "num_hidden_layers=10000000, which must be 1 to 10000"),
        ("num_hidden_layers", "2", 'num_hidden_layers="2"'),
        ("hidden_size", -32, "hidden_size=-32"),
        ("num_attention_heads", 0, "num_attention_heads=0"),
        ("vocab_size", 2.5, "vocab_size=2.5"),
        ("text_config", {"num_hidden_layers": -1}, "text_config.num_hidden_layers=-1"),
        ("num_local_experts", 10**7, "num_local_experts=10000000"),
        ("model_type", None, 'add the one that the original model has, as in "model_type"'),
        ("model_type", 7, "has no model_type"),
        ("is_encoder_decoder", True, "is an encoder-decoder model (opt)"),
    ],
)
def test_sizes_that_no_model_has(changed: Change, key: str, value: Any, words: str) -> None:
    began = time.process_time()
    with pytest.raises(ModelError) as caught:
        check_folder(changed(key, value), "model.path=x")
    assert time.process_time() - began < 1
    said = str(caught.value)
    assert words in said
    assert said.startswith("model.path=x")
    assert "again" not in said, "a copy would say the same"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "holds a list instead of an object"),
        ("null", "holds null instead of an object"),
        ("3", "holds a number instead of an object"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_config_that_is_no_object(changed: Change, content: str, words: str) -> None:
    folder = changed("torch_dtype", "float32")
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=words):
        check_folder(folder, "model.path=x")


def test_links_and_names_that_lead_nowhere(changed: Change, tiny_cell: Make) -> None:
    folder = changed("torch_dtype", "float32")
    weights = folder / "model.safetensors"
    weights.unlink()
    weights.symlink_to(weights.name)
    for path in (folder, folder / ("p" * 300)):
        with pytest.raises(ModelError) as caught:
            cell_of(tiny_cell(f"model.path={path}"))
        assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match="there is no file or folder"):
        cell_of(tiny_cell("method=gptq", f"calib.path={'q' * 300}"))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_attention_heads", 3, "embed_dim must be divisible by num_heads"),
        ("hidden_size", [32], "cannot build"),
        ("model_type", "frobnicate", "model type `frobnicate`"),
        ("model_type", "t5", "is an encoder-decoder model (t5)"),
    ],
)
def test_what_transformers_cannot_build_is_said_in_every_plan(
    changed: Change, tiny_cell: Make, key: str, value: Any, words: str
) -> None:
    """Also of full precision, for which nothing else would be built before the run."""
    path = changed(key, value)
    with pytest.raises(BitsweepError) as caught:
        resolve(tiny_cell("method=none", "scheme=w16", f"model.path={path}"))
    said = str(caught.value)
    assert words in said
    assert len(said) < 600
    assert "\n" not in said
    assert "again" not in said


def test_eager_is_chosen_and_recorded_where_there_is_no_sdpa(
    tiny_model: Path, tmp_path: Path, tiny_cell: Make
) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    folder = tmp_path / "gemma2"
    config = Gemma2Config(
        vocab_size=1024, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder / name)
    cell = cell_of(tiny_cell(f"model.path={folder}"))
    assert cell.keys.semantic["model"]["attention"] == "eager"
    assert "attention is eager, because gemma2 has no sdpa" in str(fits.attention_note(cell.model))
    opt = cell_of(tiny_cell())
    assert opt.keys.semantic["model"]["attention"] == "sdpa"
    assert fits.attention_note(opt.model) is None


def test_random_weights_of_an_architecture_without_sdpa(tiny_cell: Make) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for name in WITHOUT_SDPA:
        assert not AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[name]]._supports_sdpa
    config = tiny_cell("method=none", "scheme=w16")
    del config.suite["perplexity"]
    config.model.source, config.model.path, config.model.architecture = "dummy", None, "bloom-560m"
    cell = resolve(config)
    assert isinstance(cell, ResolvedCell)
    assert cell.keys.semantic["model"]["attention"] == "eager"
