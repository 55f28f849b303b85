"""The README's table of a real model: a line for every cell, whether measured or not."""

from pathlib import Path
from types import ModuleType

import pytest

from harness.records.items import make_items
from harness.records.record import Failure, Metric, Record
from harness.records.store import load_records, write_atomically
from harness.report.render import to_markdown
from tests.harness.report.conftest import make_record
from tools import reference as module
from tools.readme import rewritten
from tools.real_table import real_table

MODEL = "smollm2-135m-instruct"


def figure(name: str, task: str, value: float, **more: object) -> Metric:
    fields = {"unit": "ppl", "n": 500, "n_unit": "documents", "stderr": 0.02, "notes": {}}
    return Metric(name=name, task=task, value=value, **{**fields, **more})


def records() -> list[Record]:
    windows = {"windows": "40 of 2048", "protocol": "wikitext2 v1: x"}
    text = [figure("perplexity", "wikitext2", 20.379, stderr=0.93, notes=windows)]
    task = [figure("accuracy", "lambada_openai", 0.431, unit="fraction")]
    gone = Failure(stage="zeroshot", type="Unavailable", message="no data of LAMBADA.")
    killed = Failure(stage="quantization", type="OutOfMemory", message="too large.")
    return [
        make_record("none", "w16", model=MODEL, metrics=text),
        make_record("none", "w16", "zeroshot", model=MODEL, metrics=task),
        make_record("rtn", "w4g64", "zeroshot", model=MODEL, error=gone),
        make_record("gptq", "w2g64", "quantization", model=MODEL, error=killed),
    ]


def lines(text: str) -> dict[tuple[str, str], list[str]]:
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    found = [[each.strip() for each in row] for row in cells[2:]]
    return {(row[0], row[1]): row[2:] for row in found}


def test_without_records_every_cell_of_the_sweep_is_to_run() -> None:
    text = to_markdown(real_table([]))
    found = lines(text)
    schemes = ("w4g64", "w3g64", "w2g64")
    assert list(found) == [
        ("full prec.", "w16"),
        *((method, scheme) for method in ("RTN", "GPTQ") for scheme in schemes),
    ]
    assert all(set(row[1:]) == {"to run"} for row in found.values())
    assert "bitsweep run experiment=real/smollm2" in text


def test_a_figure_a_failure_what_is_absent_and_what_is_to_run() -> None:
    text = to_markdown(real_table(records()))
    found = lines(text)
    assert found["full prec.", "float32"][1:4] == ["20.38 ± 0.93", "–", "43.1 ± 2.0"]
    assert found["RTN", "w4g64"][1:4] == ["to run", "to run", "n/a¹"]
    assert found["RTN", "w4g64"][-1] == "to run"
    assert set(found["GPTQ", "w2g64"][1:]) == {"failed²"}
    assert "- ¹ no data of LAMBADA." in text
    assert "Perplexity on 40 windows of 2,048 tokens" in text
    assert "each task: 500 documents" in text


def test_what_may_be_chance_is_marked_where_records_hold_single_answers() -> None:
    found = []
    for method, scheme, lost in (("none", "w16", 0), ("rtn", "w4g64", 3), ("rtn", "w3g64", 30)):
        right = [True] * (100 - lost) + [False] * lost
        items = make_items("documents", "ids", right)
        task = figure(
            "accuracy", "lambada_openai", 1 - lost / 100, unit="fraction", n=100, items=items
        )
        found.append(make_record(method, scheme, "zeroshot", model=MODEL, metrics=[task]))
    text = to_markdown(real_table(found))
    shown = lines(text)
    assert shown["RTN", "w4g64"][3] == "97.0 ± 2.0¹"
    assert shown["RTN", "w3g64"][3] == "70.0 ± 2.0"
    assert "- ¹ not significantly different from full precision (p ≥ 0.05 after Holm" in text


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(module, "REAL", tmp_path / "kept")
    return module


def write(folder: Path, record: Record) -> None:
    path = folder / "cells" / record.cell.method / f"{record.suite}-{record.key[:12]}.json"
    write_atomically(path, record.model_dump_json())


def test_records_of_a_results_folder_are_kept_without_their_samples(
    reference: ModuleType, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    for record in records():
        write(results, record.model_copy(update={"samples_file": "some.samples.jsonl"}))
    write(results, make_record("rtn", "w4g64", model="another"))
    assert reference.keep(results) == []
    kept = load_records(reference.REAL)
    assert len(kept) == 4
    assert {record.cell.model for record in kept} == {MODEL}
    assert {record.samples_file for record in kept} == {None}


def test_nothing_is_kept_with_a_folder_of_this_machine_in_it(
    reference: ModuleType, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    record = records()[0]
    write(results, record.model_copy(update={"inputs": {"text": f"{tmp_path}/wiki.raw"}}))
    (problem,) = reference.keep(results)
    assert "names a folder of this machine" in problem
    assert not reference.REAL.exists()


def test_a_folder_without_such_records_and_a_page_without_a_place(
    reference: ModuleType, tmp_path: Path
) -> None:
    (problem,) = reference.keep(tmp_path)
    assert "has no record of experiment=real/smollm2" in problem
    with pytest.raises(KeyError, match="no markers for real: add <!-- begin: real -->"):
        rewritten("# A page\n", {"real": "text"})
