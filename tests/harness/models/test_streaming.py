"""Cells whose model is worked on block by block: the same figures, or a sentence why not."""

import json
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.config.schema import CellConfig
from harness.data import protocols
from harness.errors import ConfigError
from harness.models import streaming
from harness.records.record import Record
from harness.run.events import Event, Failed, Finished, Planned, Resumed
from harness.run.memory import planned_memory
from harness.run.planned import show_plan
from harness.run.process import run_in_process
from harness.run.stage import run_cell
from quant.memory.limits import Limits
from quant.memory.plan import MemoryPlanError
from tests import warm
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]


def run(config: CellConfig) -> tuple[list[Event], dict[str, Record]]:
    events: list[Event] = []
    run_cell(cell_of(config), events.append)
    plan = plan_of(config)
    records = {stage: plan.cell.find(stage) for stage in plan.stages}
    return events, {stage: record for stage, record in records.items() if record is not None}


def nats(config: CellConfig, record: Record) -> tuple[list[float], str]:
    cell = cell_of(config)
    path = cell.store.record_path(cell.identity, record.cell_key, record.suite, record.key)
    samples = (path.parent / (record.samples_file or "")).read_text()
    return [metric.value for metric in record.metrics], samples


@pytest.mark.parametrize("activations", ["cpu", "disk"])
@pytest.mark.parametrize(
    "what", [("method=none", "scheme=w16"), ("method=gptq", "scheme=w3"), ("method=rtn",)]
)
def test_streamed_perplexity_is_that_of_the_whole_model(
    what: tuple[str, ...], activations: str, tiny_cell: Make, tmp_path: Path
) -> None:
    found = []
    for stream in ("never", "always"):
        config = tiny_cell(
            *what, f"runtime.stream={stream}", f"runtime.activations={activations}",
            f"paths.results={tmp_path / stream}", "suite.perplexity.batch_size=3", latency=False,
        )  # fmt: skip
        events, records = run(config)
        assert not [event for event in events if isinstance(event, Failed)]
        record = records["perplexity"]
        found.append((nats(config, record), record.key, record.inputs, record.cell.bits_per_weight))
        streamed = record.environment.get("streamed")
        assert streamed == (None if stream == "never" else "block by block")
        if stream == "always":
            assert record.environment["activations"] == activations
        assert not list((tmp_path / stream / "scratch").glob("*"))
    assert found[0] == found[1], "bit for bit, and under the same key"


def test_suites_that_need_the_whole_model_are_refused_first(tiny_cell: Make) -> None:
    with pytest.raises(ConfigError, match=r"stream=always, but suite latency needs the whole"):
        cell_of(tiny_cell("runtime.stream=always"))
    cell_of(tiny_cell("runtime.stream=always", latency=False))


def test_suites_that_need_a_model_too_large_say_so(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant.memory.plan.fits_whole", lambda *_: False)
    events, records = run(tiny_cell())
    failures = {event.stage: event.message for event in events if isinstance(event, Failed)}
    assert list(failures) == ["latency"]
    assert "suite latency needs the whole model in memory" in failures["latency"]
    assert "runtime.stream=never" in failures["latency"]
    assert records["perplexity"].status == "ok"


def test_a_model_that_does_not_fit_is_streamed_unasked(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(tiny_cell("method=none", "scheme=w16", latency=False))
    runtime = cell.choices.runtime
    assert not streaming.streams(cell.model, None, runtime, batch=1)
    shape, _ = streaming.measured_shape(cell.model, None)
    small = Limits(host=shape.whole_bytes)
    monkeypatch.setattr("quant.memory.limits.free_memory", lambda *_: small)
    assert streaming.streams(cell.model, None, runtime, batch=1)
    never = replace(runtime, stream="never")
    assert not streaming.streams(cell.model, None, never, batch=1)


def test_the_memory_plan_comes_first_and_is_refused_with_figures(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_cell("method=gptq", latency=False)
    show_plan([cell_of(config)])
    shown = capsys.readouterr().out
    for what in ("weights of two blocks", "activations", "Hessians", "factorization", "at most"):
        assert what in shown
    monkeypatch.setattr("quant.memory.limits.free_memory", lambda *_: Limits(host=1_000_000))
    with pytest.raises(MemoryPlanError):
        planned_memory(cell_of(config))
    show_plan([cell_of(config)])
    assert "of host memory and 950.0 kB may be taken" in capsys.readouterr().out
    events, records = run(config)
    assert not [event for event in events if isinstance(event, Planned)]
    assert records["quantization"].error is not None
    assert "of host memory and 950.0 kB may be taken" in records["quantization"].error.message
    monkeypatch.undo()
    events, records = run(config)
    planned = next(event for event in events if isinstance(event, Planned))
    assert events.index(planned) == 1
    assert records["quantization"].status == "ok"


def test_a_plan_that_quantizes_nothing_does_not_wait_for_imports(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, rounded = (
        cell_of(tiny_cell(*more)) for more in (("method=none", "scheme=w16"), ("method=rtn",))
    )
    monkeypatch.setitem(sys.modules, "quant.memory.plan", None)  # importing it fails
    show_plan([plain])
    assert "1 cell, 2 stages: 2 to run, 0 done" in capsys.readouterr().out
    with pytest.raises(ImportError):
        show_plan([rounded])


def test_what_a_quantization_used_is_in_its_record(tiny_cell: Make) -> None:
    config = tiny_cell("method=gptq", "runtime.activations=disk", latency=False)
    _, records = run(config)
    record = records["quantization"]
    assert record.environment["activations"] == "disk"
    assert record.environment["devices"] == "cpu"
    assert record.environment["blocks resumed"] == "0"
    peaks = {metric.task: metric.value for metric in record.metrics if metric.name == "peak_memory"}
    assert peaks["host"] > 10_000_000
    assert {"read", "hessian", "solve", "write", "forward"} <= {
        metric.task for metric in record.metrics if metric.name == "seconds"
    }
    behind = {m.task: m.value for m in record.metrics if m.name == "background_seconds"}
    assert behind.keys() == {"write"}
    assert behind["write"] > 0
    seconds = {m.task: m.value for m in record.metrics if m.name == "seconds"}
    assert seconds.pop("total") == pytest.approx(sum(seconds.values())), "the time of one thread"


ROOT = Path(__file__).resolve().parents[3]
DIES_AFTER_A_BLOCK = """
import os, pickle, signal, sys
from pathlib import Path
from harness.run.stage import run_cell
from harness.cell.resolve import resolve
from quant.checkpoint.partial import PartialArtifact

keep = PartialArtifact._keep

def die(self, *arguments):
    keep(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

PartialArtifact._keep = die
run_cell(resolve(pickle.loads(Path(sys.argv[1]).read_bytes())), lambda _: None)
"""


def test_a_killed_cell_is_continued_whatever_its_model_is_called(
    tiny_cell: Make, tmp_path: Path
) -> None:
    whole = tiny_cell("method=gptq", f"paths.results={tmp_path / 'whole'}", latency=False)
    run(whole)
    config = tiny_cell("method=gptq", latency=False)
    # A process of its own, not a fork: threads of OpenMP that this one has used do not survive one.
    file = tmp_path / "config"
    file.write_bytes(pickle.dumps(config))
    killed = warm.run(["-c", DIES_AFTER_A_BLOCK, str(file)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    (note,) = tmp_path.glob("results/artifacts/.*.partial/blocks/*.json")
    stages = {stage["name"]: stage["seconds"] for stage in json.loads(note.read_text())["stages"]}
    begun = cell_of(config).artifact
    config = tiny_cell("method=gptq", "model.name=renamed", latency=False)
    events, records = run(config)
    (told,) = [event for event in events if isinstance(event, Resumed)]
    assert (told.stage, told.blocks, told.total) == ("quantization", 1, 2)
    saved = stages.keys() - {"structure", "capture", "read", "forward"}
    assert {"hessian", "solve"} <= saved, "the others are done again"
    assert told.seconds == pytest.approx(sum(stages[name] for name in saved))
    assert not [event for event in run(config)[0] if isinstance(event, Resumed)]
    assert records["quantization"].environment["blocks resumed"] == "1"
    one, other = (cell_of(c).artifact for c in (whole, config))
    assert one is not None
    assert other is not None
    assert other == begun
    assert [path.name for path in other.parent.iterdir()] == [other.name]
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_the_place_of_work_is_in_no_key(tiny_cell: Make) -> None:
    def keys(*more: str) -> dict[str, str]:
        return cell_of(tiny_cell(*more)).keys.stages

    assert keys() == keys("runtime.activations=disk", "runtime.stream=never")


def test_pickled_weights_are_converted_once(
    tiny_model: Path, tiny_cell: Make, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_model, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    config = tiny_cell(f"model.path={pickled}", latency=False)
    events, records = run(config)
    assert not [event for event in events if isinstance(event, Failed)]
    (converted,) = (tmp_path / "results" / "converted").iterdir()
    before = (converted / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(cell_of(config).artifact)  # type: ignore[arg-type]
    run(tiny_cell(f"model.path={pickled}", "suite.perplexity.max_windows=3", latency=False))
    assert (converted / "model.safetensors").stat().st_mtime_ns == before
    plain = tiny_cell(f"paths.results={tmp_path / 'plain'}", latency=False)
    assert nats(config, records["perplexity"]) == nats(plain, run(plain)[1]["perplexity"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runtime.activations=tape", "runtime.activations=tape is unknown; choose one of auto,"),
        ("runtime.activations=cuda", "runtime.activations=cuda, but runtime.device=cpu"),
        ("runtime.stream=yes", "runtime.stream=yes is unknown; choose one of auto, always, never"),
    ],
)
def test_wrong_settings_are_refused(override: str, message: str, tiny_cell: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        cell_of(tiny_cell(override))


def test_the_plan_reaches_the_screen_through_the_cell_process(
    tiny_cell: Make, tmp_path: Path
) -> None:
    events: list[Event] = []
    run_in_process(cell_of(tiny_cell(latency=False)), events.append, tmp_path / "log")
    assert any(isinstance(event, Planned) for event in events)
    assert any(isinstance(event, Finished) for event in events)


def test_what_is_known_of_a_model_is_found_once(
    tiny_cell: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    model = cell_of(tiny_cell("method=gptq", "scheme=w3")).model
    found = []
    for _ in range(2):
        streaming._facts_of.cache_clear()  # as in a new process
        found.append(streaming.measured_shape(model, None))
        monkeypatch.setattr(streaming, "_find_facts", lambda *_: pytest.fail("found again"))
    assert found[0] == found[1]
    # The context of the model is in what is kept, by whatever name its config has it.
    own = json.loads((Path(str(model.folder)) / "config.json").read_text())
    assert protocols.context_length(found[1][1]) == own["max_position_embeddings"]
    streaming._facts_of.cache_clear()
