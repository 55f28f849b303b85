"""What a look into the store says of each stage: done, failed before, or to run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cell.plan import DONE, FAILED, TO_RUN, PendingPlan, plan_cell
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig
from harness.records.record import QUANTIZATION, Failure, Metric
from harness.run.recording import StageResult, Timing, failed_record, make_record
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]
WHEN = Timing("2026-01-01T00:00:00", 1.0)


def test_states_are_those_of_the_records(tiny_cell: Make) -> None:
    config = tiny_cell()
    cell = cell_of(config)
    stages = [QUANTIZATION, "perplexity", "latency"]
    assert plan_of(config).stages == dict.fromkeys(stages, TO_RUN)
    metric = Metric(name="perplexity", task="t", value=2.0, unit="ppl", n=1, n_unit="tokens")
    cell.store.write(make_record(cell, "perplexity", StageResult(metrics=[metric]), WHEN))
    failure = Failure(stage="latency", type="OSError", message="no clock")
    cell.store.write(failed_record(cell, failure, WHEN))
    plan = plan_of(config)
    assert plan.stages == {QUANTIZATION: TO_RUN, "perplexity": DONE, "latency": FAILED}
    assert plan.todo == [QUANTIZATION, "latency"], "a failure is tried again"
    assert plan_of(tiny_cell("seed=1")).todo == stages, "another cell has records of its own"


class Found:
    """A cell whose records are `artifacts` by stage: the hash of the one that it was made of."""

    def __init__(self, there: bool, **artifacts: str | None) -> None:
        self.artifacts = artifacts
        self.keys = SimpleNamespace(stages=dict.fromkeys([*artifacts, "latency"], "key"))
        self.artifact = SimpleNamespace(is_dir=lambda: there)

    def find(self, stage: str) -> Any:
        if stage not in self.artifacts:
            return None
        held = self.artifacts[stage]
        return SimpleNamespace(status="ok", inputs={} if held is None else {"artifact": held})


@pytest.mark.parametrize(
    ("there", "made", "measured", "todo"),
    [
        (True, "a", "a", ["latency"]),
        (True, "a", "b", ["perplexity", "latency"]),  # measured on what another machine made
        (True, None, "b", ["latency"]),  # a record that does not say it
        (False, "a", "a", ["quantization", "latency"]),  # deleted, and a suite needs it
    ],
)
def test_figures_of_another_artifact_and_deleted_ones_are_made_again(
    there: bool, made: str | None, measured: str, todo: list[str]
) -> None:
    cell: Any = Found(there, quantization=made, perplexity=measured)
    assert plan_cell(cell).todo == todo


def test_figures_of_an_artifact_that_no_record_made_are_to_be_made_again() -> None:
    """A solver of a new version has no record yet, and the suites' keys are as they were."""
    cell: Any = Found(True, perplexity="a")
    cell.keys.stages = {QUANTIZATION: "new", **cell.keys.stages}
    assert plan_cell(cell).todo == [QUANTIZATION, "perplexity", "latency"]


def test_a_deleted_artifact_that_nothing_needs_stays_away() -> None:
    cell: Any = Found(False, quantization="a", perplexity="a")
    del cell.keys.stages["latency"]
    assert plan_cell(cell).todo == []


def test_a_model_that_is_not_here_has_everything_before_it(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tiny_cell()
    config.model.source, config.model.id, config.model.path = "hub", "nobody/nothing", None
    plan = PendingPlan(resolve(config))  # type: ignore[arg-type]
    assert plan.todo == [QUANTIZATION, "perplexity", "latency"]
    assert plan.identity.model == "tiny"


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    """Importing it takes as long as planning hundreds of cells."""
    script = (
        "import sys; from harness import cli;"
        "status = cli.main(['plan', 'method=gptq', 'scheme=w4', f'paths.results={sys.argv[1]}']);"
        "sys.exit(f'{status} and torch' if status or 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "at most at one time" in done.stdout
