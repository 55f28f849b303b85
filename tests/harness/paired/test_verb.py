"""`bitsweep compare`: what it prints, what it refuses by name, and its exit status."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from tests.harness.paired.conftest import answers, both, figure, record


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(["compare", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_two_rows_as_a_table(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "none", "rtn/w3", "--results", str(results))
    assert (status, err) == (cli.OK, "")
    lines = out.splitlines()
    assert lines[0] == "A: m/full prec./float32, B: m/RTN/w3"
    (choice,) = [line for line in lines if "embedded_choice" in line]
    assert "-20.0 [" in choice
    assert " 20/0 " in choice
    assert "90 " in choice
    assert "40 windows, 100 documents" in out
    assert "not significant" not in out


def test_what_may_be_chance_is_marked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "none", "rtn/w4", "--results", str(results))
    (choice,) = [line for line in out.splitlines() if "embedded_choice" in line]
    assert "+0.0 [" in choice.replace("-0.0", "+0.0")
    assert " 1/1 " in choice
    assert "not significant (p ≥ 0.05 after Holm's correction over 2 comparisons)" in out


def test_the_other_way_round_is_the_negative(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for words in (("none", "rtn/w3"), ("rtn/w3", "none")):
        _, out, _ = run(capsys, *words, "--results", str(results), "--json")
        found.append(json.loads(out)["comparisons"])
    for one, other in zip(*found, strict=True):
        assert one["difference"] == pytest.approx(-other["difference"])
        assert one["low"] == pytest.approx(-other["high"], rel=1e-6)
        assert (one["p"], one["lost"]) == (other["p"], other["gained"])


def test_json_and_csv_have_the_same_numbers(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("rtn/w4", "gptq/w4", "--results", str(results))
    _, out, _ = run(capsys, *words, "--json")
    entries = json.loads(out)["comparisons"]
    assert [each["task"] for each in entries] == ["embedded", "embedded_choice"]
    assert entries[1]["first"] == {"results": str(results), "row": "m/RTN/w4"}
    assert (entries[1]["test"], entries[1]["n"]) == ("exact McNemar", 100)
    assert (entries[1]["lost"], entries[1]["gained"]) == (1.0, 0.0)
    assert entries[1]["p"] == 1.0
    assert entries[1]["significant"] is False
    _, out, _ = run(capsys, *words)
    assert "corrected over 2 comparisons." in " ".join(out.split())
    _, out, _ = run(capsys, *words, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    for row, entry in zip(rows, entries, strict=True):
        assert row["second"] == entry["second"]["row"] == "m/GPTQ/w4"
        for name in ("difference", "low", "high", "p", "p_holm"):
            assert float(row[name]) == entry[name]


def test_two_folders_row_by_row(
    results: Path, keep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = keep([*both("rtn", "w4", 0.002, ()), *both("rtn", "w3", 0.3, range(20))], "other")
    status, out, _ = run(capsys, str(results), str(other))
    assert status == cli.OK
    assert f"A: {results}, B: {other}" in " ".join(out.split())
    assert [line.split()[0] for line in out.splitlines() if line.strip().startswith("m/")] == [
        *["m/RTN/w4"] * 2,
        *["m/RTN/w3"] * 2,
    ]
    assert "over 4 comparisons" in out


def test_one_comparison_is_no_comparisons(
    keep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = keep([both("none", "w16", 0.0, ())[0], both("rtn", "w4", 0.1, ())[0]])
    _, out, _ = run(capsys, "none", "rtn/w4", "--results", str(results))
    assert "corrected over 1 comparison." in " ".join(out.split())


def test_other_documents_are_refused_by_name_and_the_rest_is_compared(
    keep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    full = both("none", "w16", 0.0, ())
    quantized = both("rtn", "w4", 0.3, ())
    other = figure("accuracy", "embedded_choice", answers(count=50, ids="0123456789"))
    quantized[1] = record("rtn", "w4", [other], "zeroshot")
    results = keep([*full, *quantized])
    status, out, err = run(capsys, "none", "rtn/w4", "--results", str(results))
    assert status == cli.FAILED
    assert "embedded_choice" not in out
    assert "accuracy of embedded_choice is not on the same documents" in err
    assert "50 with hash 01234567 in m/RTN/w4" in err
    assert "the same settings of suite.zeroshot" in err
    apart = keep([*full, quantized[1]], "apart")
    *_, err = run(capsys, f"{results}:none", f"{apart}:rtn/w4")
    assert f"in {results}:m/full prec./float32, 50 with hash 01234567 in {apart}:m/RTN/w4" in err
    status, out, err = run(
        capsys, "none", "rtn/w4", "--results", str(keep([full[1], quantized[1]], "alone"))
    )
    assert (status, out) == (cli.IMPOSSIBLE, "")
    assert "not on the same documents" in err


def test_a_record_without_values_says_so(
    keep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    older = [
        record(method, scheme, [figure("accuracy", "embedded_choice", None)], "zeroshot")
        for method, scheme in (("none", "w16"), ("rtn", "w4"))
    ]
    status, _, err = run(capsys, "none", "rtn/w4", "--results", str(keep(older)))
    assert status == cli.IMPOSSIBLE
    assert "no values of single windows or documents in the records of m/full prec./float32" in err
    assert "remove zeroshot-*.json of the row from" in err
    assert "run its cell again" in err


def test_rows_without_a_suite_in_common_are_refused(
    keep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results = keep([both("none", "w16", 0.0, ())[0], both("rtn", "w4", 0.1, ())[1]])
    status, _, err = run(capsys, "none", "rtn/w4", "--results", str(results))
    assert status == cli.IMPOSSIBLE
    assert "have no perplexity or accuracy in common: measure both with the same suites" in err
