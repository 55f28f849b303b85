"""The README's ablation of calibration texts: its records are kept with the plot made of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.records.record import Record
from harness.records.store import load_records, write_atomically
from tests.harness.report.conftest import cell_records
from tests.harness.report.test_texts import TEXTS, calibrated
from tools import reference as module
from tools.readme import calibration_part


@pytest.fixture
def records() -> list[Record]:
    """Two texts, of each two sizes and two seeds."""
    made_up = SimpleNamespace(cell=cell_records)
    return [
        record
        for text in list(TEXTS)[:2]
        for sequences in (4, 16)
        for seed in (0, 1)
        for record in calibrated(made_up, text, sequences, seed)
    ]


def test_records_are_kept_with_their_plot_and_make_the_table(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALIBRATION", tmp_path / "kept")
    results = tmp_path / "results"
    for number, record in enumerate(records):
        file = results / "cells" / f"cell{number}" / f"{record.suite}-x.json"
        write_atomically(file, record.model_dump_json() + "\n")
    assert module.keep_calibration(results) == []
    assert len(load_records(tmp_path / "kept")) == len(records)
    plots = sorted(file.name for file in (tmp_path / "kept" / "plots").iterdir())
    assert plots == [f"perplexity_by_calibration.{kind}" for kind in ("pdf", "png", "svg")]
    text = calibration_part(tmp_path / "kept")
    assert "### Spread over calibration texts of embedded" in text
    assert "| GPTQ | w3 | 4 x 512 | 2 | 2 |" in text


def test_without_records_the_table_is_to_run(tmp_path: Path) -> None:
    assert calibration_part(tmp_path / "nowhere").startswith("To run")
    assert module.keep_calibration(tmp_path)[0].endswith(f"paths.results={tmp_path}")
