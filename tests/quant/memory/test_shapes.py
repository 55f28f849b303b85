"""Shapes that are kept: those that were found, found again for everything they depend on."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quant.blocks import find_blocks
from quant.calibrate.foreseen import foresee
from quant.checkpoint.skeleton import build_causal_lm
from quant.coverage import Coverage, coverage
from quant.memory import shapes
from quant.memory.shapes import ModelFacts, ModelShape, cached_facts, model_shape
from tests.quant.architectures import CONFIGS, tiny_model

COVERED = Coverage(64, {"h.*.router": 4}, 128)
FACTS = ModelFacts(ModelShape(((8, 4), (4, 8)), 2, 1000, 500, 4, 96, 4), "opt", 64, COVERED)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shapes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "opt"}')
    return tmp_path / "model"


def never() -> ModelFacts:
    pytest.fail("found again although it is kept")


def counted(made: list[ModelFacts], facts: ModelFacts = FACTS) -> Callable[[], ModelFacts]:
    def make() -> ModelFacts:
        made.append(facts)
        return facts

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_kept_is_what_was_computed(name: str, tmp_path: Path) -> None:
    tiny_model(name).config.save_pretrained(tmp_path)
    model = build_causal_lm(tmp_path, torch.bfloat16, {}, "")
    positions = getattr(model.config, "max_position_embeddings", None)
    facts = ModelFacts(
        model_shape(model), model.config.model_type, positions, coverage(find_blocks(model))
    )
    seen = foresee(model)
    facts = replace(facts, inputs=seen.inputs, stream=seen.stream)
    assert cached_facts(tmp_path, "bfloat16", False, lambda: facts) == facts
    assert cached_facts(tmp_path, "bfloat16", False, never) == facts


def test_a_kept_shape_answers_for_what_it_was_made_from_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ModelFacts] = []
    make = counted(made)
    cached_facts(folder, "float32", False, make)
    cached_facts(folder, "float32", False, never)
    cached_facts(folder, "float16", False, make)
    cached_facts(folder, "float32", True, make)
    assert len(made) == 3
    (folder / "config.json").write_text('{"model_type": "opt", "hidden_size": 8}')
    cached_facts(folder, "float32", False, make)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "version", lambda _: "99.0")
        cached_facts(folder, "float32", False, make)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "VERSION", shapes.VERSION + 1)
        cached_facts(folder, "float32", False, make)
    assert len(made) == 6
    cached_facts(folder, "float32", False, never)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"blocks"', '"block"'),
        lambda text: text.replace("1000", "-1000"),
        lambda text: text.replace("1000", '"1000"'),
        lambda text: text.replace("1000", "true"),
        lambda text: text.replace("[8, 4]", "[8]"),
        lambda text: text.replace("[[8, 4], [4, 8]]", "[]"),
        lambda text: text.replace('"opt"', "3"),
        lambda text: "\udcff",
    ],
)
def test_a_damaged_file_is_written_again(
    damage: Callable[[str], str], folder: Path, cache: Path
) -> None:
    cached_facts(folder, "float32", False, lambda: FACTS)
    (file,) = cache.iterdir()
    whole = file.read_text()
    damaged = damage(whole).encode(errors="surrogateescape")
    assert damaged != whole.encode()
    file.write_bytes(damaged)
    made: list[ModelFacts] = []
    assert cached_facts(folder, "float32", False, counted(made)) == FACTS
    assert len(made) == 1
    assert file.read_text() == whole
    assert list(cache.iterdir()) == [file], "no half-written file stays"


def test_errors_and_missing_configurations_are_not_kept(folder: Path, cache: Path) -> None:
    def refuse() -> ModelFacts:
        raise RuntimeError("no causal language model")

    with pytest.raises(RuntimeError, match="no causal language model"):
        cached_facts(folder, "float32", False, refuse)
    (folder / "config.json").unlink()
    assert cached_facts(folder, "float32", False, lambda: FACTS) == FACTS
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_error(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "quant")
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    made: list[ModelFacts] = []
    for _ in range(2):
        assert cached_facts(folder, "float32", False, counted(made)) == FACTS
    assert len(made) == 2
    assert "is not cached" in caplog.text


def test_what_is_kept_is_readable(folder: Path, cache: Path) -> None:
    cached_facts(folder, "float32", False, lambda: FACTS)
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    assert kept["model_type"] == "opt"
    assert kept["shape"]["layers"] == [[8, 4], [4, 8]]


def test_plans_import_neither_torch_nor_transformers() -> None:
    script = (
        "import sys; from quant.memory import limits, plan, shapes;"
        "from quant import tiling;"
        "limits.free_memory('cpu');"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
