"""Cells put together from few compositions equal those that Hydra composes whole."""

import random
from pathlib import Path

import pytest

from harness.config import compose
from harness.config.compose import compose_cells, compose_one, session, to_cell
from harness.config.help import conf_dir
from harness.config.schema import Cell

EXPERIMENTS = sorted(
    path.relative_to(conf_dir() / "experiment").with_suffix("").as_posix()
    for path in (conf_dir() / "experiment").rglob("*.yaml")
)
# Methods named by interpolation; models of two families, and three seeds.
QUICK = (
    ("experiment=paper/table06_latency",),
    ("experiment=paper/original_evaluation", "model=opt-125m,bloom-560m"),
)


def assert_hydra_composes(cells: list[Cell], folder: Path | None = None) -> None:
    with session(folder) as searchpath:
        for cell in cells:
            whole = to_cell(compose_one([*searchpath, *cell.overrides]))
            assert repr(cell.config) == repr(whole), cell.overrides


@pytest.mark.parametrize("overrides", QUICK, ids=lambda each: each[0])
def test_cells_of_an_experiment_are_those_of_hydra(overrides: tuple[str, ...]) -> None:
    cells = compose_cells(overrides, multirun=True)
    assert_hydra_composes([cells[-1], *random.Random(0).sample(cells, k=2)])


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_cells_of_every_experiment_are_those_of_hydra(name: str) -> None:
    assert_hydra_composes(compose_cells([f"experiment={name}"]))


def test_compositions_grow_with_the_sum_of_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    whole = compose.compose_one
    monkeypatch.setattr(compose, "compose_one", lambda given: (made.append(given), whole(given))[1])
    sweep = ["model=opt-125m,bloom-560m", "method=rtn,gptq", "scheme=w4,w3g128", "seed=0,1,2"]
    assert len(compose_cells(sweep, multirun=True)) == 24
    assert len(made) == 1 + 1 + 1 + 1  # seeds are set in what is composed


MODEL = "name: {}\nsource: dummy\narchitecture: opt-125m\n"
FILES = {
    "model/one.yaml": MODEL.format("one"),
    # Brings a scheme and another seed; the seed on the command line wins.
    "model/brings.yaml": "defaults:\n  - override /scheme@_global_.scheme: w2\n  - _self_\n"
    + MODEL.format("brings"),
    # Adds to another group, with and without a package of its own.
    "method/reaches.yaml": "# @package _global_\nmethod:\n  solver: quant.solvers.rtn\n"
    "calib:\n  sequences: 7\n",
    "method/names.yaml": "solver: quant.solvers.rtn\nnote: ${model.name}-${scheme.bits}\n",
    "method/includes.yaml": "defaults:\n  - rtn\n"
    "  - override /calib@_global_.calib: documents\n  - _self_\n",
    "scheme/named.yaml": "bits: 4\ngroup_size: ${calib.sequences}\n",
    "calib/follows.yaml": "defaults:\n  - embedded\n  - _self_\n"
    "seed: ${seed}\nlength: ${scheme.bits}\n",
}


REACHING = (
    ("model=one,brings", "method=rtn,names,reaches"),
    ("method=rtn,includes", "model=one,brings"),
    ("scheme=w3,named", "method=rtn,reaches,names"),
    ("calib=embedded,follows", "scheme=w3,w4", "seed=0,5"),
)


@pytest.mark.parametrize("sweep", REACHING, ids=lambda each: " ".join(each))
def test_choices_that_reach_into_each_other_are_composed_as_hydra_does(
    sweep: tuple[str, ...], tmp_path: Path
) -> None:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    cells = compose_cells(sweep, multirun=True, extra=tmp_path)
    assert_hydra_composes(cells[1:], tmp_path)
    assert len({repr(cell.config) for cell in cells}) == len(cells)
