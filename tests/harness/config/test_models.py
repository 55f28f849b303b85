"""The files of conf/model: complete, composed, and with the figures of their sources."""

import csv
import re

import pytest
import yaml
from omegaconf import OmegaConf

from harness.config.compose import compose_cells
from harness.config.help import conf_dir, options
from harness.config.schema import ModelConfig
from harness.report.published_files import published_file

OWN = ("hub", "local", "dummy", "dummy-opt-175b", "embedded", "smollm2-135m-wheel")
MODELS = [name for name in options("model") if name not in OWN]
FAMILIES = {
    "opt": 9, "bloom": 6, "llama": 16, "qwen2.5": 7, "qwen3": 7, "mistral": 4, "mixtral": 1,
    "gemma": 10, "phi": 8, "smollm2": 3, "smollm3": 1, "pythia": 9,
}  # fmt: skip


def read(name: str) -> dict:
    return yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))


def test_every_size_of_every_family_is_there() -> None:
    found: dict[str, int] = {}
    for name in MODELS:
        family = name.partition("-")[0]
        found[family] = found.get(family, 0) + 1
    assert found == FAMILIES
    assert {"opt-125m", "opt-175b", "bloom-560m", "bloom-176b", "llama-65b"} <= set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_its_keys_and_types_are_those_of_the_schema(name: str) -> None:
    """What Hydra composes of a file on top of hub.yaml, without Hydra's 0.2 s a file."""
    root = conf_dir() / "model"
    parts = [OmegaConf.load(root / f"{each}.yaml") for each in ("hub", name)]
    for part in parts:
        del part["defaults"]
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), *parts))
    assert isinstance(merged, ModelConfig)
    assert merged.source == "hub"
    assert merged.dtype in ("float16", "bfloat16")
    assert merged.attention in ("sdpa", "eager")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_id_licence_size_and_what_is_expected(name: str) -> None:
    model = read(name)
    assert model["name"] == name
    assert model["licence"]
    assert float(model["parameters"]) > 1e6
    assert ("id" in model) != ("unavailable" in model), "a place, or why there is none"
    if "id" in model:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model["id"])
    revision = model.get("revision")
    assert revision is None or re.fullmatch(r"[0-9a-f]{40}|step143000", revision)
    assert model["defaults"] == ["hub", "_self_"]


def test_expected_perplexities_are_published_ones() -> None:
    """Every figure of a model file is a line of results/published."""
    published = set()
    for name in ("gptq.csv", "peers.csv"):
        with published_file(name).open(encoding="utf-8", newline="") as file:
            published |= {
                (line["model"], line["task"], float(line["value"]))
                for line in csv.DictReader(file)
                if line["method"] == "none" and line["metric"] == "perplexity"
            }
    count = 0
    for name in MODELS:
        for task, value in (read(name).get("expected") or {}).items():
            assert (name, task, value) in published
            count += 1
    assert count > 60


def test_a_model_of_the_hub_takes_everything_else_from_one_file() -> None:
    (cell,) = compose_cells(["model=llama-3-8b"])
    model = cell.config.model
    assert (model.source, model.id) == ("hub", "meta-llama/Meta-Llama-3-8B")
    assert (model.dtype, model.context, model.gated) == ("bfloat16", 2048, True)
    assert model.protocols == ["wikitext2"]
    assert model.expected == {"wikitext2": 6.14, "c4": 8.88}
    assert cell.config.calib.name == "c4"
