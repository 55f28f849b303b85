"""The arithmetic of the overhead: what is divided, subtracted, compared and refused."""

import json
from pathlib import Path

import pytest

from benchmarks import harness_overhead
from benchmarks.harness_overhead import (
    CACHED,
    FRESH,
    GOALS,
    HELP,
    PLAN,
    Site,
    per_cell,
    stage_seconds,
    table,
    turns,
)


def write_records(results: Path, cells: int, seconds: float) -> None:
    for cell in range(cells):
        for stage in ("quantization", "perplexity"):
            file = results / "cells" / str(cell) / f"{stage}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"seconds": seconds}))


def test_a_further_cell_costs_an_eighth_of_the_difference() -> None:
    assert per_cell(one=10.0, many=12.0) == 0.25


def test_the_seconds_of_stages_are_those_of_all_records(tmp_path: Path) -> None:
    write_records(tmp_path, cells=2, seconds=0.5)
    assert stage_seconds(tmp_path, cells=2) == 2.0
    with pytest.raises(RuntimeError, match="holds 4 records where 3 cells have 6"):
        stage_seconds(tmp_path, cells=3)


def test_checkouts_are_measured_in_turn() -> None:
    assert list(turns(2, 3)) == [[0, 1], [1, 0], [0, 1]]


def test_stages_are_no_overhead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep takes 5 s, two stages and 0.1 s a cell; one that is done 4 s and 0.02 s a cell."""

    def seconds(site: Site, *arguments: str) -> float:
        (folder,) = (word for word in arguments if word.startswith("paths.results="))
        results = Path(folder.partition("=")[2])
        (seeds,) = (word for word in arguments if word.startswith("seed="))
        cells = len(seeds.split(","))
        if results.exists():
            return 4 + 0.02 * cells
        write_records(results, cells, seconds=0.5)
        return 5 + (0.1 + 2 * 0.5) * cells

    monkeypatch.setattr(Site, "seconds", seconds)
    found = Site(tmp_path, tmp_path)._overheads()
    assert found == {FRESH: pytest.approx(0.1), CACHED: pytest.approx(0.02)}


def test_the_table_has_medians_spread_ratio_and_goal() -> None:
    old = {HELP: [0.4, 0.2, 0.3], CACHED: [0.02, 0.02, 0.02]}
    new = {HELP: [0.1, 0.1, 0.15], CACHED: [0.01, 0.02, 0.03]}
    first, second = table([old, new])
    assert first.split() == [
        *("--help", "300", "[200,", "400]", "100", "[100,", "150]", "0.50x", "goal", "100", "ms")
    ]
    assert second.endswith(" 1.00x")


def test_one_checkout_has_no_ratio() -> None:
    (line,) = table([{PLAN: [1.5]}])
    assert line.endswith("1500 [1500, 1500]   goal 1000 ms")


def test_the_goals_are_in_seconds() -> None:
    assert (GOALS[HELP], GOALS[PLAN], GOALS[FRESH]) == (0.1, 1.0, 0.15)


def test_the_tiny_model_has_one_block_and_a_tokenizer(tmp_path: Path) -> None:
    harness_overhead.save_tiny_model(harness_overhead.REPOSITORY, tmp_path / "tiny")
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["num_hidden_layers"] == 1
    assert (tmp_path / "tiny" / "tokenizer.json").is_file()
