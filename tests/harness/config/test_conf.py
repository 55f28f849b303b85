"""Every option of every group in conf/ composes, is valid and is explained."""

import json
import re
from pathlib import Path

import pytest
import yaml

from harness.cell.resolve import resolve
from harness.config import help as options
from harness.config.compose import compose_cells
from harness.config.schema import Cell, CellConfig
from harness.embedded import MODEL_DIR
from tests.harness.cells import cell_of

CONF = options.conf_dir()
FILES = sorted(CONF.rglob("*.yaml"))
GOLDEN = Path(__file__).parents[2] / "golden" / "quickstart_cells.json"

# What some options need beside them: a quantizing method needs a scheme that quantizes, and texts
# that come from the hub are given as local files.
BESIDE = {
    "method/none": ["scheme=w16"],
    "scheme/w16": ["method=none"],
    "calib/none": ["method=rtn"],
    "method/hqq": ["scheme=hqq4g64"],
    "method/svd": ["scheme=budget"],
    "method/svd_whitened": ["scheme=budget"],
    "method/dense_sparse": ["scheme=budget"],
    "scheme/budget": ["method=svd"],
    # The embedded model's heads cannot be removed.
    "transform/obs_pruning": ["transform.obs_pruning.heads=false"],
    "transform/optin": ["transform.optin.heads=false"],
    "method/rtn_calibrated": ["scheme=w3g64_hessian"],
    "calib/c4": ["calib.path={text}", "calib.length=null"],
    "calib/wikitext2": ["calib.path={text}", "calib.length=null"],
    "calib/documents": ["calib.path={text}"],
    "calib/text": ["calib.path={text}", "calib.length=null"],
    "suite/perplexity_documents": ["suite.perplexity.paths.documents={text}"],
    "suite/perplexity_paper": [
        "suite.perplexity.paths.wikitext2={text}",
        "suite.perplexity.paths.ptb-new={text}",
        "suite.perplexity.paths.c4-new={text}",
    ],
    "suite/zeroshot_paper": [
        f"suite.zeroshot.files.{task}={{task}}"
        for task in ("lambada_openai", "piqa", "arc_easy", "arc_challenge")
    ],
    "model/dummy-opt-175b": ["method=random"],
    "model/opt-175b": ["model.unavailable=null", "model.id=somebody/something"],
    "model/dummy": ["model.architecture=opt-125m", "method=random"],
    "method/random": ["model=dummy", "model.architecture=opt-125m"],
    "model/hub": ["model.id=somebody/something"],
    "model/local": [f"model.path={MODEL_DIR}"],
    "runtime/cuda": ["runtime.device=cpu"],
}


# One of each kind: the other files of conf/model have the same keys (test_models.py).
MODELS = (
    "hub",
    "local",
    "dummy",
    "dummy-opt-175b",
    "embedded",
    "opt-125m",
    "opt-175b",
    "gemma-2-2b",
    "smollm2-135m-wheel",
)


def single(group: str, option: str) -> list[str]:
    """Overrides that choose one option with the least beside it."""
    chosen = f"suite=[{option}]" if group == "suite" else f"{group}={option}"
    if group == "model" and option != "embedded":
        return [chosen, "method=rtn", "suite=[latency]"]  # their usual texts are on the hub
    if group == "transform":  # one simulates what is not timed
        return [chosen, "suite=[perplexity]"]
    return [chosen, *([] if group == "suite" else ["suite=[latency]"])]


def choices() -> list[tuple[str, str]]:
    return [
        (group.name, option)
        for group in options.groups()
        for option in group.options
        if group.name != "experiment" and (group.name != "model" or option in MODELS)
    ]


@pytest.mark.parametrize(("group", "option"), choices())
def test_every_option_composes_and_is_valid(
    group: str, option: str, stories_file: Path, tmp_path: Path
) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"context": "Tom had", "continuation": " apples"}))
    beside = [
        each.format(text=stories_file, task=task) for each in BESIDE.get(f"{group}/{option}", [])
    ]
    (cell,) = compose_cells([*single(group, option), *beside])
    resolve(cell.config)


@pytest.mark.parametrize("option", options.options("experiment"))
def test_every_experiment_composes(option: str, quickstart: list[Cell]) -> None:
    """The paper's at one point, because Hydra composes a cell in 0.2 s: harness.config.experiments
    has their cells, and tests/harness/run/test_paper.py runs them. The ablation at one size.
    """
    paper = option.startswith("paper/")
    one = ["model=embedded", "method=rtn", "scheme=w4", "seed=0"] * paper
    one += ["calib.sequences=4"] * (option == "calibration")
    cells = quickstart if option == "quickstart" else compose_cells([f"experiment={option}", *one])
    assert len({cell.config.name for cell in cells}) == 1
    assert cells[0].config.suite
    if not paper:
        assert len(cells) > 1, "an experiment is a sweep"
        assert cells[0].config.method == {"solver": None}, "full precision comes first"


def test_the_quickstart_is_what_it_was(quickstart: list[Cell]) -> None:
    """The cells of the quickstart and their keys; a difference means that its figures change.

    After a deliberate change: BITSWEEP_UPDATE_GOLDEN=1 pytest tests/harness/config/test_conf.py
    """
    import os

    keys = [cell_of(cell.config).keys for cell in quickstart]
    found = {
        "cells": {" ".join(c.overrides): k.cell for c, k in zip(quickstart, keys, strict=True)},
        "first": {"semantic": keys[0].semantic, "suites": keys[0].suites},
        "last": {"semantic": keys[-1].semantic, "suites": keys[-1].suites},
    }
    found = json.loads(json.dumps(found))
    if os.environ.get("BITSWEEP_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_the_quickstart_has_what_it_promises(quickstart: list[Cell]) -> None:
    cells = [cell.config for cell in quickstart]
    quantized = [cell for cell in cells if cell.method["solver"] is not None]
    assert len(quantized) >= 8
    assert {cell.scheme.bits for cell in quantized} == {8, 4, 3, 2}
    assert len({cell.method["solver"] for cell in quantized}) == 2
    assert all({"perplexity", "zeroshot", "latency"} <= cell.suite.keys() for cell in cells)
    assert {cell.model.source for cell in cells} == {"embedded"}, "needs no network"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_every_file_explains_itself(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith("#"), "a comment at the top says what the file is"
    assert len(options.head_comment(file)) > 20
    assert all(len(line) <= 100 for line in text.splitlines())
    in_defaults = False
    for line in text.splitlines():
        in_defaults = line == "defaults:" or (in_defaults and line.startswith(" "))
        if in_defaults and re.match(r"  - (?!_self_)", line):
            assert "#" in line, f"{line.strip()} has no comment"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_no_keys_twice_in_a_file(file: Path) -> None:
    keys = re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_a_model_brings_its_calibration_text_and_the_user_still_chooses() -> None:
    def calib(*overrides: str) -> str:
        return compose_cells(overrides)[0].config.calib.name

    assert calib("model=opt-125m") == "c4"
    assert calib("model=opt-125m", "calib=embedded") == "embedded"
    assert calib("model=embedded") == "embedded"
    assert "perplexity" in compose_cells(["model=opt-125m"])[0].config.suite


def test_the_schema_has_no_key_without_a_default_in_conf() -> None:
    """A run without any override has a value for everything."""
    (cell,) = compose_cells([])
    assert isinstance(cell.config, CellConfig)
    resolve(cell.config)
