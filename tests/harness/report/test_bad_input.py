"""Results as they come: older, edited or truncated records, wrong clocks, places that are full."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from harness import cli
from harness.records.record import SCHEMA_VERSION
from harness.report.held import of_earlier
from harness.report.verb import joined


def write(results: Path, record, name: str = "") -> Path:
    folder = results / "cells" / f"x-{record.cell_key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name or record.suite}-{record.key[:12]}.json"
    file.write_text(record.model_dump_json())
    return file


@pytest.fixture
def results(tmp_path, made_up) -> Path:
    for scheme, value in (("w4", 5.5), ("w3", 9.0)):
        write(tmp_path / "r", made_up.record("rtn", scheme, metrics=[made_up.perplexity(value)]))
    return tmp_path / "r"


def report(*words) -> int:
    return cli.main(["report", *map(str, words)])


def schemes(folder: Path) -> list[str]:
    lines = (folder / "tables" / "accuracy.csv").read_text().splitlines()
    return [line.split(",")[1] for line in lines[1:]]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_folders_are_joined_in_any_order_to_the_same_bytes(results, tmp_path, made_up) -> None:
    other = tmp_path / "s"
    shutil.copytree(results, other)  # what both hold counts once
    write(other, made_up.record("rtn", "w2", metrics=[made_up.perplexity(40.0)]))
    assert report(results, other, "--out", tmp_path / "a") == cli.OK
    assert report(other, results, "--out", tmp_path / "b") == cli.OK
    assert schemes(tmp_path / "a") == ["w4", "w3", "w2"]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert "older figure" not in (tmp_path / "a" / "summary.md").read_text()
    assert report(results, other) == cli.OK
    assert schemes(results / "reports" / "joined") == ["w4", "w3", "w2"]


def test_one_folder_of_several_without_records_is_named(results, tmp_path, capsys) -> None:
    assert report(results, tmp_path / "nowhere") == cli.IMPOSSIBLE
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:200], "line 1 column 201"),
        (lambda text: "", "line 1 column 1"),
        (lambda text: text.replace('"status":"ok"', '"status":"fine"'), "Input should be"),
        (lambda text: text.replace('"value":9.0', '"value":"nine"'), "valid number"),
        (lambda text: text.replace("2026-11-21T10:00:00+00:00", "yesterday"), "started_at"),
        (
            lambda text: text.replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":99'),
            "99",
        ),
        (lambda text: text.encode("utf-16"), "codec"),
    ],
)
def test_what_is_no_record_is_named_and_the_rest_is_shown(
    results, made_up, capsys, damage, said
) -> None:
    (file,) = [each for each in results.rglob("*.json") if '"w3"' in each.read_text()]
    damaged = damage(file.read_text())
    file.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    before = file.read_bytes()
    (kept,) = joined([results])
    assert kept.cell.scheme == "w4"
    message = capsys.readouterr().err
    assert f"left out: {file} is not a record of this version (" in message
    assert said in message
    assert file.read_bytes() == before  # a user may mend it


def test_a_record_of_an_older_schema_is_read(results, made_up) -> None:
    record = made_up.record("rtn", "w8", metrics=[made_up.perplexity(5.1)])
    file = write(results, record)
    older = json.loads(file.read_text())
    older["schema_version"] = 2
    for metric in older["metrics"]:
        del metric["items"]  # what version 3 added
    file.write_text(json.dumps(older))
    assert {each.cell.scheme for each in joined([results])} == {"w8", "w4", "w3"}


def test_an_edited_copy_is_told_and_the_report_does_not_depend_on_the_order(
    results, tmp_path, capsys
) -> None:
    other = tmp_path / "s"
    shutil.copytree(results, other)
    (file,) = [each for each in other.rglob("*.json") if '"w3"' in each.read_text()]
    file.write_text(file.read_text().replace('"value":9.0', '"value":4.0'))
    assert report(results, other, "--out", tmp_path / "a") == cli.OK
    assert report(other, results, "--out", tmp_path / "b") == cli.OK
    said = capsys.readouterr().err
    assert said.count("embedded-rtn-w3-s0, perplexity: there are two records of key") == 2
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert schemes(tmp_path / "a") == ["w4", "w3"]


def test_a_clock_that_was_ahead_is_told(results, made_up, capsys) -> None:
    ahead = made_up.record(
        "rtn", "w3", metrics=[made_up.perplexity(7.0)], key="f" * 64,
        started_at="2126-11-21T10:00:00+00:00",
    )  # fmt: skip
    write(results, ahead)
    assert report(results) == cli.OK
    said = capsys.readouterr().err
    assert "1 record has a date still to come (embedded-rtn-w3-s0, perplexity: 2126-" in said
    assert "the later date counts" in said
    assert schemes(results / "reports" / "all") == ["w4", "w3"]
    text = (results / "reports" / "all" / "summary.md").read_text()
    assert "1 older figure of the same cells, measured again since" in text


def test_results_that_are_read_only_ask_for_another_folder(
    results, tmp_path, monkeypatch, capsys
) -> None:
    allowed = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: not str(path).startswith(str(results)) and allowed(path, mode),
    )
    assert report(results) == cli.IMPOSSIBLE
    assert "--out FOLDER" in capsys.readouterr().err
    assert not (results / "reports").exists()
    assert report(results, "--out", tmp_path / "mine") == cli.OK
    assert schemes(tmp_path / "mine") == ["w4", "w3"]
    assert cli.main(["sync", str(results)]) == cli.IMPOSSIBLE
    assert f"{results / 'wandb'} cannot be written: copy" in capsys.readouterr().err


def test_no_space_left_is_told_and_the_report_before_stays(
    results, made_up, monkeypatch, capsys
) -> None:
    assert report(results) == cli.OK
    before = tree(results / "reports")
    write(results, made_up.record("rtn", "w2", metrics=[made_up.perplexity(40.0)]))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert report(results, "--interchange") == cli.IMPOSSIBLE
    assert "the disk is full: free some space" in capsys.readouterr().err
    assert tree(results / "reports") == before
    monkeypatch.undo()
    assert report(results) == cli.OK
    assert schemes(results / "reports" / "all") == ["w4", "w3", "w2"]


def test_a_report_of_the_name_that_cannot_be_read_is_told(results, tmp_path, made_up) -> None:
    folder = tmp_path / "report"
    assert report(results, "--out", folder) == cli.OK
    coming = [made_up.record("rtn", "w2", metrics=[made_up.perplexity(40.0)])]
    found, said = of_earlier(results, folder, coming)
    assert {record.cell.scheme for record in found} == {"w4", "w3"}
    assert said[0].startswith("The report shows 2 cells of earlier runs of this name too")
    metrics = folder / "metrics.csv"
    whole = metrics.read_text()
    for damaged in (whole[: len(whole) // 2], "a,b\n1,2\n", 'key,cell_key\n"'):
        metrics.write_text(damaged)
        found, said = of_earlier(results, folder, coming)
        assert found == []
        assert said == [
            f"{metrics} cannot be read, so rows of earlier runs of this name are not in the "
            f"report; `bitsweep report {results}` shows all records."
        ]


def test_an_earlier_record_that_was_damaged_since_is_named(results, tmp_path, made_up) -> None:
    folder = tmp_path / "report"
    assert report(results, "--out", folder) == cli.OK
    (file,) = [each for each in results.rglob("*.json") if '"w3"' in each.read_text()]
    file.write_text(file.read_text()[:300])
    coming = [made_up.record("rtn", "w2", metrics=[made_up.perplexity(40.0)])]
    found, said = of_earlier(results, folder, coming)
    assert [record.cell.scheme for record in found] == ["w4"]
    assert said[0].startswith(f"left out of the report: {file} is not a record")
