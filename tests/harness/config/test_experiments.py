"""The experiment files of the paper as data: headers, cells, and every published figure."""

import csv
from pathlib import Path

import pytest

from harness.config.compose import compose_cells
from harness.config.experiments import Asked, experiments, header, model_file
from harness.config.help import conf_dir, options
from harness.report.progress import ESTIMATED, disk_bytes
from harness.report.published import published_figures
from harness.report.published_files import published_file
from quant.scheme import Scheme

ALL = experiments()
FACTS = ("Regenerates", "Hardware", "Memory", "Disk", "Hours", "Data", "Published", "First look")
# Figures that no experiment can have: of other kinds of models, and of running text.
ELSEWHERE = {"1", "text"}


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_a_header_says_all_that_a_run_needs(each) -> None:
    assert tuple(each.facts) == FACTS
    assert each.command in (conf_dir() / "experiment" / f"{each.name}.yaml").read_text()
    assert each.fact("Hours")[0].isdigit()
    assert each.fact("Hours").endswith(ESTIMATED)
    assert "GB" in each.fact("Disk")


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_the_disk_of_a_header_is_that_of_its_models(each) -> None:
    """Two bytes a weight, and the quantized models, of what can be had; with room to spare."""
    cells = [cell for cell in each.cells if model_file(cell.model).get("unavailable") is None]
    computed, said = disk_bytes(cells) / 1e9, float(each.fact("Disk").removesuffix(" GB"))
    assert computed <= 1.05 * said
    assert said <= 1.35 * computed + 2


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_its_cells_name_files_and_schemes_that_exist(each) -> None:
    models = set(options("model")) | {"dummy-${model.architecture}"}
    methods = {name.partition("_")[0] for name in options("method")}
    assert each.cells
    for cell in each.cells:
        assert cell.model in models
        assert cell.method in methods
        assert cell.scheme == "w16" or Scheme.parse(cell.scheme)


def test_every_published_table_has_its_experiment_or_a_reason() -> None:
    with published_file("tables.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    owners = [table for each in ALL for table in each.published]
    assert len(owners) == len(set(owners))
    assert {line["table"] for line in lines if not line["reason"]} == set(owners)
    of_paper = {each.table for each in published_figures() if each.source.startswith("arXiv:2210")}
    assert of_paper - ELSEWHERE <= set(owners)


def test_every_published_cell_of_a_table_is_asked_for() -> None:
    """Method and scheme of every figure are in the sweep of the table's experiment."""
    owners = {table: each for each in ALL for table in each.published}
    for figure in published_figures():
        owner = owners.get(figure.table)
        if owner is None or figure.model not in options("model"):
            continue
        asked = {
            (cell.model, cell.method, cell.scheme)
            for cell in owner.cells
            if not figure.scheme or cell.scheme == figure.scheme
        }
        names = {figure.model, "dummy-${model.architecture}"}
        found = any((name, figure.method) == key[:2] for name in names for key in asked)
        spoken = figure.unit not in ("ppl", "fraction", "s", "ms")  # a speed-up, of the text
        assert found or spoken, figure


def test_cells_are_those_that_hydra_composes() -> None:
    (each,) = (each for each in ALL if each.name == "paper/table08_exact_greedy")
    composed = compose_cells(["experiment=paper/table08_exact_greedy"])
    assert [
        Asked(
            cell.config.model.name,
            (cell.config.method["solver"] or "none").rpartition(".")[2],
            "w16" if cell.config.scheme.bits == 16 else f"w{cell.config.scheme.bits}",
            cell.config.seed,
        )
        for cell in composed
    ] == list(each.cells)
    assert {cell.config.runtime.device for cell in composed} == {"cuda"}
    assert composed[0].config.suite["perplexity"]["protocols"] == ["wikitext2"]
    assert composed[1].config.calib.sequences == 128
    assert composed[1].config.calib.length == 2048


def test_a_header_is_read_line_by_line() -> None:
    text = (
        "# @package _global_\n#\n# Disk         1 GB: a\n#              b.\nname: x\n# Memory   2\n"
    )
    assert header(text) == {"Disk": "1 GB: a b."}


def test_the_folder_holds_nothing_else() -> None:
    files = {file.stem for file in Path(conf_dir() / "experiment" / "paper").glob("*.yaml")}
    assert files - {each.name.removeprefix("paper/") for each in ALL} == {"opt125m_wikitext2"}
