"""Rows found by the words of tables, and refusals that say which rows there are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import ConfigError
from harness.paired.rows import pairs_of
from tests.harness.paired.conftest import both


def names(first: str, second: str, results: Path) -> list[tuple[str, str]]:
    return [(a.name, b.name) for a, b in pairs_of(first, second, results)]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("rtn/w4", "m/RTN/w4"),
        ("m/RTN/w4", "m/RTN/w4"),
        ("RTN w3", "m/RTN/w3"),
        ("w3", "m/RTN/w3"),
        ("gptq/w4", "m/GPTQ/w4"),
        ("gptq/act-order/w4", "m/GPTQ act-order/w4"),
        ("act-order", "m/GPTQ act-order/w4"),
    ],
)
def test_a_row_is_named_as_tables_name_it(results: Path, word: str, name: str) -> None:
    full = "m/full prec./float32"
    assert names("none", word, results) == [(full, name)]
    assert names(word, "full precision", results) == [(name, full)]
    assert names(word, "w16", results) == [(name, full)]


def test_every_name_that_is_printed_leads_to_its_row(results: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pairs_of("none", "w5", results)
    said = str(caught.value)
    listed = said.partition("which has ")[2].removesuffix(".").split(", ")
    assert len(listed) == 5
    for name in listed[1:]:
        assert names(listed[0], name, results) == [(listed[0], name)]


def test_rows_of_several_calibrations_are_told_apart_by_them(keep: Callable[..., Path]) -> None:
    """Also where the model is called as one of its texts, as the embedded one is."""
    records = both("none", "w16", 0.0, (), model="own")
    for text in ("own", "random"):
        records += both("gptq", "w4", 0.0005, (3,), model="own", calibration=text)
    results = keep(records)
    with pytest.raises(ConfigError, match=r"GPTQ own/w4, own/GPTQ random/w4: add .*calibration"):
        pairs_of("none", "gptq/w4", results)
    for text in ("own", "random"):
        found = ("own/full prec./float32", f"own/GPTQ {text}/w4")
        assert names("none", f"gptq {text}/w4", results) == [found]
        assert names("none", found[1], results) == [found]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("rtn/w4", "awq/w4", r"awq/w4 is no row of .*results, which has m/full prec"),
        ("rtn", "none", r"rtn names 2 rows of .*, m/RTN/w4, m/RTN/w3: add"),
        ("rtn/w4", "RTN/w4", "are the same row, m/RTN/w4"),
        ("elsewhere/results:rtn/w4", "none", "there is no folder elsewhere/results"),
        ("", "none", "is no row of"),
    ],
)
def test_what_is_no_row_is_refused(results: Path, first: str, second: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pairs_of(first, second, results)


def test_rows_of_two_folders_are_named_with_them(
    results: Path, keep: Callable[..., Path], tmp_path: Path
) -> None:
    other = keep(both("rtn", "w4", 0.002, (1, 2, 3)), "other")
    ((first, second),) = pairs_of("rtn/w4", f"{other}:rtn/w4", results)
    assert (first.folder, second.folder) == (results, other)
    assert first.name == second.name == "m/RTN/w4"
    with pytest.raises(ConfigError, match=r"other is a folder, but .*other:METHOD/SCHEME"):
        pairs_of(str(other), "rtn/w4", results)


def test_namesakes_of_two_folders_are_paired(results: Path, keep: Callable[..., Path]) -> None:
    other = keep([*both("rtn", "w4", 0.002, ()), *both("rtn", "w3", 0.2, ())], "other")
    assert names(str(results), str(other), Path("unused")) == [
        ("m/RTN/w4", "m/RTN/w4"),
        ("m/RTN/w3", "m/RTN/w3"),
    ]
    foreign = keep(both("rtn", "w4", 0.002, (), model="n"), "foreign")
    with pytest.raises(ConfigError, match="have no row of one name: the first has"):
        pairs_of(str(results), str(foreign), Path("unused"))
    with pytest.raises(ConfigError, match="is named twice"):
        pairs_of(str(results), str(results), Path("unused"))


def test_folders_without_records_are_refused(tmp_path: Path, results: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        pairs_of("rtn/w4", "none", tmp_path / "nowhere")
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no records"):
        pairs_of("rtn/w4", f"{tmp_path / 'empty'}:none", results)
