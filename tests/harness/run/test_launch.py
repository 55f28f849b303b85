"""What a run says: names as they are, and what happened, whatever happens to the report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.schema import Cell, CellConfig
from harness.errors import StoreError
from harness.records.record import Failure
from harness.records.store import unique_name
from harness.run import launch, planned
from harness.run.diary import Diary
from harness.run.events import Failed
from harness.run.recording import StageResult, Timing, failed_record, make_record
from harness.run.sweep import Outcome, jobs_of
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]


def write(config: CellConfig, *stages: str) -> None:
    """Records of stages as a run leaves them."""
    from harness.records.record import Metric

    cell = cell_of(config)
    metric = Metric(name="perplexity", task="t", value=2.0, unit="ppl", n=1, n_unit="tokens")
    for stage in stages:
        result = StageResult(metrics=[metric])
        cell.store.write(make_record(cell, stage, result, Timing("2026-01-01T00:00:00", 1.0)))


@pytest.mark.parametrize("name", ["a[/red]b", "[bold]x", ":smile:", "n" * 300])
def test_a_plan_shows_names_as_they_are(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = tiny_cell("method=gptq")
    config.model.name = name
    planned.show_plan([cell_of(config)])
    said = capsys.readouterr().out
    assert name in said.replace("\n", "") or len(name) > 100
    assert "to run" in said


def test_a_plan_tells_methods_of_one_name_by_their_options(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell_of(tiny_cell(f"method={name}")) for name in ("gptq", "gptq_actorder")]
    planned.show_plan(cells)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny ")]
    assert ["act-order" in row for row in rows] == [False, True]


def test_a_plan_tells_calibrations_of_one_name_by_what_differs(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell_of(tiny_cell("method=gptq", f"calib.sequences={n}")) for n in (2, 4)]
    planned.show_plan([*cells, cell_of(tiny_cell("method=rtn"))])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny ")]
    assert ["documents sequences=2" in rows[0], "documents sequences=4" in rows[1]] == [True, True]
    assert "documents" not in rows[2]


def test_cells_of_one_name_are_told_apart_by_their_calibration(tiny_cell: Make) -> None:
    """In the lines of a sweep, in `bitsweep status`, and in the names of logs."""
    configs = [tiny_cell("method=gptq", f"calib.sequences={n}") for n in (2, 4)]
    jobs = jobs_of([*map(plan_of, configs), plan_of(tiny_cell("method=rtn"))])
    assert [job.name for job in jobs] == [
        "tiny-gptq-w4-s0 (documents sequences=2)",
        "tiny-gptq-w4-s0 (documents sequences=4)",
        "tiny-rtn-w4-s0",
    ]
    log = Diary(Path("runs")).log(jobs[1]).name
    assert log == "002-tiny-gptq-w4-s0_documents_sequences_4_.log"


def test_the_screen_shows_names_as_they_are(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.run.events import Advanced, Waiting
    from harness.run.screen import Screen, open_console

    plan = plan_of(tiny_cell())
    screen = Screen(open_console(stderr=True), [plan])
    with screen:
        screen.cell(1, "tiny[/red]", plan)
        screen.show(Waiting("process 7 on node3"))
        screen.show(Advanced("perplexity", 1, 2, "[/b]"))
        screen.show(Failed("perplexity", "OSError", "m"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[1/1] tiny[/red] waiting: process 7 on node3 works on this cell",
        "[1/1] tiny[/red] perplexity failed (OSError): m",
    ]


@pytest.mark.parametrize("trouble", [StoreError("the disk is full"), KeyboardInterrupt()])
def test_the_summary_is_printed_whatever_happens_to_the_report(
    tiny_cell: Make,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException,
) -> None:
    config = tiny_cell()
    write(config, "perplexity")
    failure = Failure(stage="latency", type="OSError", message="no clock")
    cell = cell_of(config)
    cell.store.write(failed_record(cell, failure, Timing("2026-01-01T00:00:00", 1.0)))

    def broken(*_: object, **__: object) -> None:
        raise trouble

    outcome = Outcome(finished=1, failures=[("tiny", Failed("latency", "OSError", "no clock"))])
    monkeypatch.setattr(launch, "run_sweep", lambda *_: outcome)
    monkeypatch.setattr(launch, "report", broken)
    try:
        assert launch.run([Cell(config, ())]) == launch.FAILED
    except KeyboardInterrupt:
        assert isinstance(trouble, KeyboardInterrupt)
    said = capsys.readouterr().err
    assert "1 stage run, 0 found finished, 1 failed" in said
    assert "  tiny: latency failed: no clock" in said
    assert ("no report: the disk is full" in said) == isinstance(trouble, StoreError)


def test_a_report_that_cannot_be_written_is_made_elsewhere(
    tiny_cell: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_cell()
    for suite in ("perplexity", "latency"):
        write(config, suite)
    results = Path(config.paths.results)
    (results / "reports").write_text("in the way")
    assert launch.run([Cell(config, ())]) == launch.FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert f"`bitsweep report {results} --out FOLDER` writes one elsewhere." in said
    assert "paths.results" not in said  # there everything would be run again


def test_reports_of_other_names_have_other_folders_and_one_name_keeps_its_rows(
    tiny_cell: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = tiny_cell("scheme=w4"), tiny_cell("scheme=w3")
    for config in (first, other):
        write(config, "quantization", "perplexity", "latency")
    for config, name in ((first, ".."), (other, "."), (first, "a b"), (other, "a/b")):
        config.name = name
        assert launch.run([Cell(config, ())]) == launch.OK
        assert "earlier runs" not in capsys.readouterr().out
    reports = tmp_path / "results" / "reports"
    found = {path.name for path in reports.iterdir()}
    assert found == {unique_name(name) for name in ("..", ".", "a b", "a/b")}
    assert len(found) == 4
    other.name = "a b"
    for _ in range(2):  # the second finds both rows in the report of the first
        launch.run([Cell(other, ())])
        said = " ".join(capsys.readouterr().out.split())
        assert "shows 1 cell of earlier runs of this name too; name=NAME makes a separate" in said
        table = (reports / unique_name("a b") / "tables" / "accuracy.csv").read_text()
        assert [line.split(",")[1] for line in table.splitlines()] == ["scheme", "w4", "w3"]


def test_results_that_cannot_be_written_are_refused_by_plan_and_run(
    tiny_cell: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_cell()
    monkeypatch.setattr("os.access", lambda *_: False)
    for attempt in (
        lambda: planned.show_plan([cell_of(config)]),
        lambda: launch.run([Cell(config, ())]),
    ):
        with pytest.raises(StoreError, match="you have no permission to write it"):
            attempt()
    assert not (tmp_path / "results").exists()


def test_a_plan_says_when_two_models_have_one_name(tiny_cell: Make) -> None:
    plan = plan_of(tiny_cell())
    other = replace(
        plan, cell=replace(plan.cell, model=replace(plan.cell.model, fingerprint="f" * 64))
    )
    assert planned.shared_names([plan, plan]) == []
    (said,) = planned.shared_names([plan, other])
    assert said is not None
    assert plan.cell.model.fingerprint[:8] in said
    assert "ffffffff" in said
    assert "model.name=NAME" in said
