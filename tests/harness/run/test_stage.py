"""A cell from model to records, in this process, on a model of two tiny blocks."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from harness.config.schema import CellConfig
from harness.records.items import values_of
from harness.run.events import Event, Failed, Finished
from harness.run.stage import run_cell
from harness.suites import perplexity
from harness.suites.base import SuiteContext
from tests.harness.cells import cell_of, plan_of

Make = Callable[..., CellConfig]


def run(config: CellConfig) -> list[Event]:
    events: list[Event] = []
    run_cell(cell_of(config), events.append)
    return events


def finished(events: list[Event]) -> list[str]:
    return [e.stage for e in events if isinstance(e, Finished) and not e.cached]


def failed(events: list[Event]) -> dict[str, str]:
    return {e.stage: e.message for e in events if isinstance(e, Failed)}


def test_a_quantized_cell_leaves_a_record_per_stage_and_an_artifact(tiny_cell: Make) -> None:
    config = tiny_cell("method=gptq", "scheme=w3")
    events = run(config)
    assert failed(events) == {}
    assert finished(events) == ["quantization", "perplexity", "latency"]
    plan = plan_of(config)
    assert plan.todo == []
    made = plan.cell.find("quantization")
    assert made is not None
    assert len(made.layers) == 12
    narrow, wide = 4 * 32 * 32 + 64 * 32, 32 * 64  # weights of layers with 32 and 64 inputs
    bits = (narrow * (3 + 19 / 32) + wide * (3 + 19 / 64)) / (narrow + wide)
    assert made.cell.bits_per_weight == pytest.approx(bits)
    assert {m.task for m in made.metrics if m.name == "seconds"} >= {"load model", "total"}
    assert made.inputs["calibration tokens"]
    assert made.environment["kernel"] == plan.cell.kernel
    perplexity = plan.cell.find("perplexity")
    assert perplexity is not None
    assert perplexity.samples_file is not None
    path = plan.cell.store.record_path(
        plan.identity, perplexity.cell_key, "perplexity", perplexity.key
    )
    samples = (path.parent / perplexity.samples_file).read_text().splitlines()
    nll = [json.loads(line)["nll"] for line in samples]
    items = perplexity.metrics[0].items
    assert items is not None
    assert values_of(items).tolist() == nll
    assert len(nll) == 4
    assert perplexity.inputs["artifact"] == made.inputs["artifact"]
    assert perplexity.cell.bits_per_weight == made.cell.bits_per_weight


def test_allowed_damping_is_recorded_and_in_the_key(tiny_cell: Make) -> None:
    plain = tiny_cell("method=gptq", "method.damping=0", "calib.sequences=1", "calib.length=2")
    assert "cannot span" in failed(run(plain))["quantization"]
    ladder = "method.damping_ladder=[0.5]"
    given = ("method=gptq", "method.damping=0", "calib.sequences=1", "calib.length=2", ladder)
    allowed = tiny_cell(*given)
    assert failed(run(allowed)) == {}
    made = cell_of(allowed).find("quantization")
    assert made is not None
    assert made.key != cell_of(plain).keys.stages["quantization"]
    assert {layer.fallback for layer in made.layers} == {"damping 0.5 instead of 0"}


def test_records_hold_no_folder_of_this_machine(tiny_cell: Make) -> None:
    config = tiny_cell(latency=False)
    run(config)
    for file in Path(config.paths.results).glob("cells/*/*.json"):
        assert str(Path.home()) not in file.read_text()
        assert str(file.parent) not in file.read_text()
        assert "/tmp" not in file.read_text()


def test_full_precision_is_measured_without_quantization(tiny_cell: Make) -> None:
    config = tiny_cell("method=none", "scheme=w16")
    assert finished(run(config)) == ["perplexity", "latency"]
    record = cell_of(config).find("perplexity")
    assert record is not None
    assert record.environment["kernel"] == "torch"


def test_what_is_finished_is_not_repeated(tiny_cell: Make) -> None:
    config = tiny_cell()
    run(config)
    again = run(config)
    assert finished(again) == []
    assert all(isinstance(event, Finished) and event.cached for event in again)


def test_only_a_lost_record_is_made_again(tiny_cell: Make) -> None:
    config = tiny_cell()
    run(config)
    plan = plan_of(config)
    keys = plan.cell.keys
    lost = plan.cell.store.record_path(plan.identity, keys.cell, "latency", keys.stages["latency"])
    lost.unlink()
    assert finished(run(config)) == ["latency"]


def test_keys_follow_what_figures_depend_on_and_nothing_else(
    tiny_cell: Make, stories_file: Path, tmp_path: Path
) -> None:
    def stages(*more: str) -> dict[str, str]:
        keys = cell_of(tiny_cell("method=gptq", *more)).keys
        return {"cell": keys.cell, **keys.stages}

    base = stages()
    same = stages("runtime.timeout_s=60", "name=other", "tracker=wandb", "runtime.kernel=auto")
    assert same == base
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    copy = moved / stories_file.name
    copy.write_bytes(stories_file.read_bytes())
    assert stages(f"calib.path={copy}") == base
    copy.write_text(stories_file.read_text() + "more")
    assert stages(f"calib.path={copy}")["cell"] != base["cell"]
    assert stages("scheme=w3")["cell"] != base["cell"]
    assert stages("seed=1")["quantization"] != base["quantization"]
    batch = stages("suite.perplexity.batch_size=2")
    assert batch["perplexity"] != base["perplexity"]
    assert batch["latency"] == base["latency"]
    assert (
        stages("method=rtn")["quantization"] == stages("method=rtn", "calib=none")["quantization"]
    )
    threads = stages("runtime.threads=2")
    assert threads["latency"] != base["latency"]
    assert threads["perplexity"] == base["perplexity"]


def test_a_failed_suite_is_recorded_and_the_others_go_on(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no figures today; try tomorrow.")

    config = tiny_cell()
    with monkeypatch.context() as patch:
        spec = replace(perplexity.SUITE, run=broken)
        patch.setattr("harness.suites.perplexity.SUITE", spec)
        events = run(config)
    assert failed(events) == {"perplexity": "no figures today; try tomorrow."}
    assert finished(events) == ["quantization", "latency"]
    record = cell_of(config).find("perplexity")
    assert record is not None
    assert record.status == "failed"
    assert record.error is not None
    assert (record.error.type, record.error.stage) == ("ValueError", "perplexity")
    assert finished(run(config)) == ["perplexity"], "a failed stage is tried again"


def test_non_finite_weights_fail_the_quantization_and_stop_the_cell(
    tiny_model: Path, tiny_cell: Make, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.fc1.weight"))
    tensors[name][3, 5] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    events = run(tiny_cell(f"model.path={broken}"))
    assert list(failed(events)) == ["quantization"]
    assert "layers.1.fc1" in failed(events)["quantization"]
    assert finished(events) == []


def test_a_calibration_text_that_is_too_short(tiny_cell: Make) -> None:
    events = run(tiny_cell("method=gptq", "calib.sequences=400"))
    assert list(failed(events)) == ["quantization"]
    assert "40" in failed(events)["quantization"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_artifact_is_refused_and_earlier_records_stay(
    tiny_cell: Make, damage: str
) -> None:
    config = tiny_cell(latency=False)
    run(config)
    folder = cell_of(config).artifact
    assert folder is not None
    file = sorted(folder.glob("model-*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-100])
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    before = {path: path.read_bytes() for path in Path(config.paths.results).glob("cells/*/*")}
    wider = tiny_cell()
    message = failed(run(wider))["latency"]
    assert file.name in message
    assert str(folder) in message
    assert "quantize again" in message
    assert all(path.read_bytes() == content for path, content in before.items())
    import shutil

    shutil.rmtree(folder)
    assert plan_of(wider).todo == ["quantization", "latency"]
    assert finished(run(wider)) == ["quantization", "latency"]


def test_a_full_disk_fails_the_stage_with_the_next_step(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    config = tiny_cell(latency=False)
    run(config)
    before = sorted(Path(config.paths.results).glob("cells/*/*"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    wider = tiny_cell()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        events = run(wider)
    assert "the disk is full" in failed(events)["latency"]
    assert "run the same command again" in failed(events)["latency"]
    assert sorted(Path(config.paths.results).glob("cells/*/*")) == before
    assert finished(run(wider)) == ["latency"]


def test_the_kernel_is_part_of_what_gptq_is_and_not_of_rounding(tiny_cell: Make) -> None:
    def key(method: str, kernel: str) -> str:
        config = tiny_cell(f"method={method}", "scheme=w3", f"runtime.kernel={kernel}")
        return cell_of(config).keys.stages["quantization"]

    assert key("gptq", "reference") != key("gptq", "cpu")
    assert key("rtn", "reference") == key("rtn", "cpu")


def test_a_suite_without_one_of_its_tasks_keeps_the_figures_of_the_others(
    tiny_cell: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    from harness.report.frame import from_records
    from harness.report.rows import read_rows

    load = TaskManager.load

    def no_data(self: object, tasks: list[object]) -> object:
        if "piqa" in tasks:
            raise ConnectionError("no route to the hub")
        return load(self, tasks)

    task = tmp_path / "mine.jsonl"
    task.write_text(json.dumps({"context": "Tom had", "continuation": "apples"}))
    config = tiny_cell("method=none", "scheme=w16", latency=False)
    settings = {"files": {"mine": str(task)}, "tasks": ["piqa"]}
    config.suite = {"zeroshot": {"module": "harness.suites.zeroshot", **settings}}
    monkeypatch.setattr(TaskManager, "load", no_data)
    assert "task piqa: the data of task piqa" in failed(run(config))["zeroshot"]
    plan = plan_of(config)
    assert plan.todo == ["zeroshot"], "tried again"
    made = plan.cell.find("zeroshot")
    assert made is not None
    assert made.status == "failed"
    assert {metric.task for metric in made.metrics} == {"mine"}
    (row,) = read_rows(from_records([made])).rows
    assert ("zeroshot", "mine", "accuracy") in row.figures
    assert "task piqa" in row.failures["zeroshot"]


def test_figures_of_another_artifact_are_stale_and_measured_again(tiny_cell: Make) -> None:
    config = tiny_cell("method=rtn", latency=False)
    run(config)
    plan = plan_of(config)
    store, keys = plan.cell.store, plan.cell.keys
    measured = plan.cell.find("perplexity")
    assert measured is not None
    # As if another machine had made another artifact of the same key before this one.
    store.write(measured.model_copy(update={"inputs": {**measured.inputs, "artifact": "0" * 64}}))
    assert plan_of(config).stages == {"quantization": "done", "perplexity": "to run"}
    assert finished(run(config)) == ["perplexity"]
    again = plan.cell.find("perplexity")
    assert again is not None
    assert (again.inputs, again.key) == (measured.inputs, keys.stages["perplexity"])


def test_a_suite_that_reads_files_has_no_weights_in_memory(
    tiny_cell: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that an earlier suite loaded nor those outside the blocks."""
    before = {id(model) for model in loaded_models()}
    seen = []

    def look(context: SuiteContext, _: object) -> None:
        seen.append({p.device.type for p in context.model.parameters()})
        gc.collect()
        assert [model for model in loaded_models() if id(model) not in before] == []
        raise ValueError("looked")

    for method, scheme in (("rtn", "w4"), ("none", "w16")):
        given = (
            f"method={method}",
            f"scheme={scheme}",
            "suite=[perplexity_documents,latency,audit]",
        )
        cell = cell_of(tiny_cell(*given))
        (audit,) = (each for each in cell.choices.suites if each.suite.name == "audit")
        monkeypatch.setitem(audit.suite.__dict__, "run", look)
        events: list[Event] = []
        run_cell(cell, events.append)
        assert failed(events) == {"audit": "looked"}
    assert seen == [{"meta"}, {"meta"}]


def loaded_models() -> list[torch.nn.Module]:
    """The models of this process that have weights."""
    models = [each for each in gc.get_objects() if isinstance(each, PreTrainedModel)]
    return [model for model in models if any(not p.is_meta for p in model.parameters())]
