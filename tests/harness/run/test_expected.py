"""What a plan says of time, disk and what is shared, against records and files that are there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.config.schema import CellConfig
from harness.records.record import Metric
from harness.run.expected import EXPONENTS, expected_lines
from harness.run.recording import StageResult, Timing, make_record
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]


def record(config: CellConfig, stage: str, seconds: float, parameters: float | None = None) -> None:
    """A record of a stage that took so long on this machine."""
    config.model.parameters = parameters
    cell = cell_of(config)
    metric = Metric(name="perplexity", task="t", value=2.0, unit="ppl", n=1, n_unit="tokens")
    timing = Timing("2026-01-01T00:00:00", seconds)
    cell.store.write(make_record(cell, stage, StageResult(metrics=[metric]), timing))


def time_line(*configs: CellConfig, workers: int = 1, elsewhere: bool = False) -> str:
    lines = expected_lines([plan_of(config) for config in configs], elsewhere, workers)
    (line,) = [line for line in lines if line.startswith("time: ")]
    return line


def test_time_is_not_known_without_records(tiny_cell: Make) -> None:
    assert time_line(tiny_cell(latency=False)) == (
        "time: not known, because no record of this machine has such stages "
        "(1 quantization, 1 perplexity)"
    )


def test_time_is_that_of_the_same_stages_before(tiny_cell: Make) -> None:
    """Few records give a wider range than their own; other settings and methods say nothing."""
    for seed, seconds in enumerate([100.0, 130.0, 120.0]):
        record(tiny_cell(f"seed={seed}", "scheme=w4", latency=False), "quantization", seconds)
    record(tiny_cell("scheme=w3", latency=False), "perplexity", 1000.0)
    other = tiny_cell("suite.perplexity.max_windows=3", "scheme=w8", latency=False)
    record(other, "perplexity", 77.0)
    record(tiny_cell("method=gptq", latency=False), "quantization", 9999.0)
    # 100 to 130 s of three records, and 1000 s of one: between four fifths and five quarters.
    assert time_line(tiny_cell("scheme=w2", latency=False)) == (
        "time: 15 min to 23 min for 2 stages, one after the other, from 6 records of this machine"
    )
    line = time_line(tiny_cell("scheme=w2", latency=False), workers=2)
    assert line.startswith("time: 8 min to 12 min for 2 stages by 2 workers, from 6 records")


def test_another_model_s_time_is_scaled_by_size_as_a_range(tiny_cell: Make) -> None:
    small = tiny_cell("model.name=small", latency=False)
    record(small, "perplexity", 100.0, parameters=1e6)
    large = tiny_cell("model.name=large", "scheme=w3", latency=False)
    large.model.parameters = 16e6
    low, high = (100 * 16**power / 60 for power in EXPONENTS)
    assert f"time: {round(low)} min to {round(high)} min for 1 stage, one after the other" in (
        time_line(large)
    )
    assert "(1 of other models, taken to grow with size^0.9 to size^1.5)" in time_line(large)
    assert time_line(large).endswith("; not known for 1 quantization")


def test_other_transforms_take_another_time(tiny_cell: Make) -> None:
    """Records of a recipe say its time; of others of the method they say a wide range."""

    def cell(*overrides: str) -> CellConfig:
        return tiny_cell("method=gptq", *overrides, latency=False)

    record(cell("scheme=w4"), "quantization", 100.0)
    record(cell("scheme=w3"), "perplexity", 10.0)
    line = time_line(cell("scheme=w2", "transform=[equalize]"))
    assert line.startswith("time: 48.0 s to 6 min for 2 stages")  # 100 / 1.25 / 2, 100 * 1.25 * 3
    assert "(1 by other transforms or grids, taken to need 0.5 to 3 times)" in line
    small = cell("model.name=small", "scheme=w4", "transform=[equalize]")
    record(small, "quantization", 1.0, parameters=10.0)  # another model says less than it
    assert time_line(cell("scheme=w2", "transform=[equalize]")).startswith(
        "time: 48.0 s to 6 min for 2 stages"
    )
    record(cell("scheme=w4", "transform=[equalize]"), "quantization", 500.0)
    line = time_line(cell("scheme=w2", "transform=[equalize]"))
    assert line.startswith("time: 7 min to 11 min for 2 stages")
    assert "transforms" not in line


def test_records_of_another_machine_count_only_for_cells_that_run_elsewhere(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tiny_cell(latency=False), "perplexity", 100.0)
    monkeypatch.setattr("harness.run.expected.machine", lambda: {"cpu": "another"})
    assert "not known, because" in time_line(tiny_cell("scheme=w2", latency=False))
    there = time_line(tiny_cell("scheme=w2", latency=False), elsewhere=True)
    assert there.startswith("time: 80.0 s to 2 min for 1 stage, one after the other, from 1 ")
    assert "of machines with such a device" in there


def test_an_artifact_of_two_cells_is_counted_once(tiny_cell: Make) -> None:
    one = plan_of(tiny_cell(latency=False))
    other = plan_of(tiny_cell("suite.perplexity.max_windows=3", latency=False))
    shared, _, disk = expected_lines([one, other])
    assert shared == (
        "shared, so made once and waited for by the others: the artifact of tiny rtn w4 by 2 cells"
    )
    assert " for 1 artifact, " in disk
    assert len(expected_lines([one])) == 2


def test_disk_is_that_of_the_files(tiny_cell: Make, tmp_path: Path) -> None:
    """Within a tenth of the weights' file that a quantization writes."""
    from harness.run.process import run_in_process

    plan = plan_of(tiny_cell(latency=False))
    (line,) = [line for line in expected_lines([plan]) if line.startswith("disk: about ")]
    said, unit = line.removeprefix("disk: about ").split()[:2]
    run_in_process(plan.cell, lambda _: None, tmp_path / "log")
    assert plan.cell.artifact is not None
    found = sum(f.stat().st_size for f in plan.cell.artifact.glob("*.safetensors"))
    assert unit == "kB"
    assert float(said) * 1e3 == pytest.approx(found, rel=0.1)
    assert expected_lines([plan_of(tiny_cell(latency=False))]) == []


def test_too_little_disk_is_said(tiny_cell: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    (line,) = [s for s in expected_lines([plan_of(tiny_cell(latency=False))]) if "disk" in s]
    assert line.endswith(
        "1.0 kB free: too little; make room, or choose another disk with paths.results=FOLDER"
    )
