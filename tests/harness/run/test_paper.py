"""The paper's experiments on the model that ships with the package; models that cannot be had."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from harness.config.compose import compose_cells
from harness.config.experiments import experiments
from harness.config.schema import Cell, CellConfig
from harness.errors import MissingData, Unavailable
from harness.records.record import QUANTIZATION
from harness.run import launch, planned

Make = Callable[..., CellConfig]
FEW = {
    "perplexity": ["suite.perplexity.max_windows=2"],
    "zeroshot": ["suite.zeroshot.limit=4"],
    "latency": [
        "suite.latency.decode_tokens=2",
        "suite.latency.warmup=1",
        "suite.latency.repeats=1",
    ],
}
ALL = {each.name.removeprefix("paper/"): each for each in experiments()}
QUICK = (
    "table02_quantization_time",
    "table03_opt_wikitext2",
    "table06_latency",
    "table13_opt_lambada",
    "figure04_groups",
)


def run(name: str, folder: Path, *more: str) -> launch.Ran:
    """The experiment with little text, on this processor."""
    few = [override for suite in ALL[name].suites for override in FEW[suite]]
    cells = compose_cells(
        [
            f"experiment=paper/{name}",
            "runtime=cpu",
            "calib.sequences=4",
            f"paths.results={folder}",
            *few,
            *more,
        ]
    )
    return launch.run_cells(cells, quiet=True)


def check(name: str, ran: launch.Ran, folder: Path) -> None:
    assert ran.status == 0, ran.outcome
    assert {record.status for record in ran.records} == {"ok"}
    assert {record.suite for record in ran.records} >= set(ALL[name].suites)
    asked = {(cell.method, cell.scheme) for cell in ALL[name].cells}
    found = {(record.cell.method, record.cell.scheme) for record in ran.records}
    assert {scheme for _, scheme in found} == {scheme for _, scheme in asked}
    (report,) = (folder / "reports").iterdir()
    assert (report / "summary.md").is_file()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.experiment if name in QUICK else pytest.mark.long)
        for name in sorted(ALL)
    ],
)
def test_an_experiment_runs_on_the_embedded_model(name: str, tmp_path: Path) -> None:
    check(name, run(name, tmp_path, "model=embedded", "seed=0"), tmp_path)


def test_a_model_that_cannot_be_had_is_n_a_beside_the_others(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tiny_cell("method=rtn", latency=False)
    gone = copy.deepcopy(here)
    gone.model.name, gone.model.unavailable = "gone", "nobody has it"
    cells = [Cell(here, ()), Cell(gone, ())]
    planned.show_plan(launch.resolve_all(cells))
    said = capsys.readouterr().out
    assert "model=gone is not available: nobody has it." in said
    assert "2 cells, 4 stages: 2 to run, 0 done, 2 n/a" in said
    ran = launch.run_cells(cells)
    assert ran.status == 0, "nobody can have it, so nothing failed"
    assert [(record.cell.model, record.suite, record.status) for record in ran.records] == [
        ("tiny", QUANTIZATION, "ok"),
        ("tiny", "perplexity", "ok"),
        ("gone", QUANTIZATION, "failed"),
        ("gone", "perplexity", "failed"),
    ]
    said = capsys.readouterr().out
    assert "n/a" in said
    assert "model=gone is not available: nobody has it." in said
    with pytest.raises(Unavailable, match="nobody has it"):
        launch.run_cells(cells[1:])


def test_a_model_that_is_not_here_now_makes_the_others_run_and_the_status_one(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    here = tiny_cell("method=none", "scheme=w16", latency=False)
    absent = copy.deepcopy(here)
    absent.model.name, absent.model.source = "absent", "hub"
    absent.model.path, absent.model.id = None, "somebody/absent"
    ran = launch.run_cells([Cell(here, ()), Cell(absent, ())], quiet=True)
    assert ran.status == 1
    (record,) = (record for record in ran.records if record.cell.model == "absent")
    assert record.error is not None
    assert "HF_HUB_OFFLINE is set" in record.error.message


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)


def with_text(config: CellConfig, *protocols: str) -> CellConfig:
    changed = copy.deepcopy(config)
    suite = changed.suite["perplexity"]
    suite["protocols"] = list(protocols)
    suite["paths"] = {name: path for name, path in suite["paths"].items() if name in protocols}
    return changed


def test_without_its_text_a_cell_of_a_published_table_is_n_a_and_any_other_is_refused(
    tiny_cell: Make, no_hub: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_text(tiny_cell("method=rtn", latency=False), "wikitext2")
    config.model.name = "opt-125m"
    with pytest.raises(MissingData, match="HF_HUB_OFFLINE is set"):
        launch.resolve_all([Cell(config, ())])
    cell = Cell(config, (), published=("3",))
    planned.show_plan(launch.resolve_all([cell]))
    assert "1 cell, 2 stages: 0 to run, 0 done, 2 n/a" in capsys.readouterr().out
    ran = launch.run_cells([cell])
    said = capsys.readouterr().out
    assert ran.status == 1
    assert [record.suite for record in ran.records] == [QUANTIZATION, "perplexity"]
    assert not any((tmp_path / "results" / "cells").glob("*"))
    for text in (said, reported(config, capsys)):
        (row,) = (line for line in text.splitlines() if "rtn" in line and "37.28" in line)
        assert "n/a" in row
        assert "HF_HUB_OFFLINE is set" in " ".join(text.split())


def reported(config: CellConfig, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["report", config.paths.results]) == 0
    return capsys.readouterr().out


def test_other_suites_run_and_a_figure_takes_the_place_of_n_a(
    tiny_cell: Make, no_hub: None, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tiny_cell("method=none", "scheme=w16", latency=True)
    gone = with_text(here, "wikitext2")
    ran = launch.run_cells([Cell(gone, (), published=("3",))])
    assert ran.status == 1
    assert {r.suite: r.status for r in ran.records} == {"latency": "ok", "perplexity": "failed"}
    assert "n/a" in reported(gone, capsys)
    assert launch.run_cells([Cell(here, (), published=("3",))]).status == 0
    assert "n/a" not in reported(gone, capsys)


def test_without_its_calibration_text_a_cell_is_n_a_beside_those_that_need_none(
    tiny_cell: Make, no_hub: None
) -> None:
    config = tiny_cell("method=gptq", latency=False)
    config.calib.protocol, config.calib.path = "c4-train", None
    rounded = tiny_cell("method=rtn", latency=False)
    cells = [Cell(each, (), published=("3",)) for each in (rounded, config)]
    found = launch.resolve_all(cells)
    assert not found[0].absent
    assert list(found[1].absent) == [QUANTIZATION, "perplexity"]


def test_one_of_two_texts_fails_alone(tiny_cell: Make, no_hub: None) -> None:
    here = tiny_cell("method=none", "scheme=w16", latency=False)
    texts = here.suite["perplexity"]["protocols"]
    config = with_text(here, *texts, "ptb-new")
    ran = launch.run_cells([Cell(config, ())], quiet=True)
    (record,) = ran.records
    assert (ran.status, record.status) == (1, "failed")
    measured = {metric.task for metric in record.metrics if metric.name == "perplexity"}
    assert measured == set(texts)
    assert record.error is not None
    assert "task ptb-new: penn_treebank/test/0000.parquet" in record.error.message
