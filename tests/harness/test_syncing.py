"""`bitsweep sync`: a wandb project again, from records alone, read back from its offline runs."""

from pathlib import Path

import pytest

from harness import cli, syncing
from harness.records.store import load_records
from harness.report import build_report
from harness.report.held import experiments
from tests.harness.test_tracking import make_cell, make_record
from tests.harness.wandb_files import read_run


@pytest.fixture
def results(tmp_path, no_network, home) -> Path:
    """Two cells of the experiment "ladder", one of no report, and a file that is no record."""
    root = tmp_path / "results"

    def write(record) -> None:
        folder = root / "cells" / f"x-{record.cell_key[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{record.suite}-{record.key[:12]}.json").write_text(record.model_dump_json())

    every = make_cell()
    for number, record in enumerate(every):
        every[number] = record.model_copy(update={"key": f"{number}" * 64})
    every.append(make_record(cell_key="b" * 64, key="b" * 64))
    for record in [*every, make_record(cell_key="c" * 64, key="c" * 64)]:
        write(record)
    build_report(every, root / "reports" / "ladder", "ladder")
    (root / "cells" / "x-broken").mkdir()
    (root / "cells" / "x-broken" / "perplexity-1.json").write_text('{"schema_version": 3, "k')
    return root


def runs_in(results: Path) -> dict:
    return {
        stored.run.run_id: stored
        for folder in sorted((results / "wandb").glob("offline-run-*"))
        for stored in [read_run(folder)]
    }


def test_a_project_is_rebuilt_and_nothing_is_logged_twice(results, capsys) -> None:
    assert cli.main(["sync", str(results), "--project", "mine"]) == cli.OK
    said = capsys.readouterr()
    assert "3 runs logged, 0 held already" in said.out
    assert "send them with: wandb sync" in said.out
    assert "left out: " in said.err  # the broken file is named
    found = runs_in(results)
    assert set(found) == {"0123456789ab", "b" * 12, "c" * 12}
    assert {run_id: each.run.run_group for run_id, each in found.items()} == {
        "0123456789ab": "ladder",
        "b" * 12: "ladder",
        "c" * 12: "results",
    }
    assert {each.run.project for each in found.values()} == {"mine"}
    first = found["0123456789ab"]
    assert first.summary["perplexity/embedded_eval/perplexity"] == 5.93
    assert first.summary["zeroshot/status"] == "failed"
    assert first.config["scheme"]["bits"] == 3
    assert {"results", "layers"} <= set(first.history)
    pages = {path.name for path in (results / "wandb" / "reports").iterdir()}
    assert pages == {"ladder.json", "results.json"}
    assert cli.main(["sync", str(results), "--project", "mine"]) == cli.OK
    assert "0 runs logged, 3 held already" in capsys.readouterr().out
    newer = make_record(cell_key="c" * 64, key="d" * 64, started_at="2026-11-22T10:00:00+00:00")
    (results / "cells" / f"x-{'c' * 12}" / "perplexity-2.json").write_text(newer.model_dump_json())
    assert cli.main(["sync", str(results), "--project", "mine"]) == cli.OK
    assert "1 run logged, 2 held already" in capsys.readouterr().out


def test_online_without_a_key_says_what_to_do_and_keeps_the_page(results, capsys) -> None:
    assert cli.main(["sync", str(results), "--online"]) == syncing.FAILED
    assert "needs an API key: run `wandb login`" in capsys.readouterr().err


def test_a_name_that_wandb_refuses_is_said_before_anything_is_written(results, capsys) -> None:
    assert cli.main(["sync", str(results), "--project", "team/mine"]) == cli.IMPOSSIBLE
    assert "--project team/mine cannot name a wandb project" in capsys.readouterr().err
    assert not (results / "wandb").exists()


def test_a_folder_without_figures_is_refused(tmp_path, capsys) -> None:
    assert cli.main(["sync", str(tmp_path)]) == cli.IMPOSSIBLE
    assert "holds no records" in capsys.readouterr().err


def test_a_cell_of_two_experiments_is_of_the_newest(results) -> None:
    records = load_records(results)
    assert {name: len(own) for name, own in experiments(results, records).items()} == {
        "ladder": 5,
        "results": 1,
    }
    build_report(records[-1:], results / "reports" / "later", "A later one")
    build_report(records, results / "reports" / "all", "Bitsweep report")
    found = experiments(results, records)
    assert [record.cell_key for record in found["A later one"]] == [records[-1].cell_key]
    assert "Bitsweep report" not in found
