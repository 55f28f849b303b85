"""The README's table of producers: quality, bytes and time of each, from records alone."""

from pathlib import Path

import pytest

from harness.records.record import Failure, Metric, Record
from harness.records.store import load_records, write_atomically
from harness.report.render import to_markdown
from tests.harness.report.conftest import make_record
from tools import reference as module
from tools.peers_table import peers_table
from tools.readme import peers_part


def figure(name: str, task: str, value: float, unit: str, **notes: str) -> Metric:
    return Metric(
        name=name, task=task, value=value, unit=unit, n=8, n_unit="windows", stderr=0.5, notes=notes
    )


def cost(size: float, seconds: float) -> list[Metric]:
    return [
        figure("artifact_size", "total", size, "bytes"),
        figure("seconds", "total", seconds, "s"),
        figure("peak_memory", "host", 9e8, "bytes"),
    ]


def records() -> list[Record]:
    windows = {"windows": "8 of 148", "protocol": "wikitext2 v1: x"}
    text = [figure("perplexity", "wikitext2", 19.13, "ppl", **windows)]
    ours = make_record("gptq", "w3g64", "quantization", metrics=cost(2e8, 84.4))
    theirs = make_record("llm_compressor", "w3g64", "quantization", metrics=cost(2.1e8, 170.0))
    theirs = theirs.model_copy(
        update={
            "environment": {**theirs.environment, "program": "llm-compressor 0.14.0.1"},
            "cell": theirs.cell.model_copy(update={"label": "llm-compressor", "options": "GPTQ"}),
        }
    )
    stopped = Failure(stage="quantization", type="QuantizationError", message="it stopped.")
    return [
        make_record("none", "w16", metrics=text),
        ours,
        theirs,
        make_record("auto_round", "w3g64", "quantization", error=stopped),
    ]


def lines(text: str) -> dict[str, list[str]]:
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [each.strip() for each in row[1:]] for row in cells[2:]}


def test_every_producer_has_a_line_with_bytes_seconds_and_memory() -> None:
    text = to_markdown(peers_table(records()))
    found = lines(text)
    assert found["full prec."][2:] == ["19.13 ± 0.50", "–", "–", "–", "–"]
    assert found["GPTQ"][-3:] == ["200", "84.4", "900"]
    assert found["llm-compressor GPTQ"][-3:] == ["210", "170", "900"]
    assert found["auto_round"][2:] == ["failed¹"] * 5
    assert "it stopped." in text
    assert "Programs: llm-compressor 0.14.0.1." in text


def test_without_records_the_page_says_so(tmp_path: Path) -> None:
    assert peers_part(tmp_path / "none") == "No figures are kept yet: run the command."


def test_records_are_kept_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PEERS", tmp_path / "kept")
    assert "has no records" in module.keep_peers(tmp_path / "results")[0]
    for index, record in enumerate(records()):
        path = tmp_path / "results" / "cells" / f"cell{index}" / f"{record.suite}-0.json"
        write_atomically(path, record.model_dump_json())
    assert module.keep_peers(tmp_path / "results") == []
    assert len(load_records(tmp_path / "kept")) == 4
