"""One cell: quantize (or reuse the artifact), load the packed result, run its suites.

Runs inside the process that harness.run.process makes for it. Every stage ends with a record, also
one that failed; a failed suite does not stop the others, a failed quantization stops the cell.
"""

from __future__ import annotations

import importlib
import random
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from harness.cell.keys import QUANTIZATION, kernel_of
from harness.cell.plan import CellPlan, plan_cell
from harness.cell.validation import make_scheme
from harness.config.schema import CellConfig
from harness.data import protocols
from harness.errors import ConfigError, StoreError
from harness.models.folders import load_tokenizer, model_folder
from harness.models.streaming import (
    STREAMING,
    StreamedModel,
    measured_shape,
    open_source,
    quantization_memory,
    refuse_whole_model,
)
from harness.records.record import Failure, LayerReport, Record
from harness.records.store import KEY_DIGITS, artifact_digest, disk_errors
from harness.run.events import Advanced, Failed, Finished, Listener, Planned, Started
from harness.run.provenance import failed_record, make_record, now
from harness.run.resuming import Resuming
from harness.run.subject import Subject
from harness.suites import quantization_cost
from harness.suites.base import SuiteContext, SuiteResult
from harness.suites.memory import measure_peak
from quant.memory.heaps import give_back

SUITES = {
    "perplexity": "harness.suites.perplexity",
    "divergence": "harness.suites.divergence",
    "zeroshot": "harness.suites.zeroshot",
    "latency": "harness.suites.latency",
    "kernels": "harness.suites.kernels",
}


def run_cell(plan: CellPlan, listen: Listener, skip: frozenset[str] = frozenset()) -> None:
    """Carry out the stages of a cell that have no record yet, under the cell's lock.

    skip names stages that must not be tried (they killed the process before). Failures of stages
    are told to `listen` and recorded; only a store that cannot be locked raises.
    """
    assert plan.keys is not None
    with plan.store.lock(plan.keys.cell):
        current = plan_cell(plan.config)  # another process may have worked on it meanwhile
        subject = Subject(current)
        for stage in current.stages:
            if stage in skip:
                continue
            if stage not in current.todo:
                listen(Finished(stage, 0.0, cached=True))
            elif not _attempt(current, stage, subject, listen) and stage == QUANTIZATION:
                return


def _attempt(plan: CellPlan, stage: str, subject: Subject, listen: Listener) -> bool:
    """One stage from start to record; False when it failed."""
    listen(Started(stage))
    give_back()  # what stages before it freed is none of its memory
    started_at, started = now(), time.perf_counter()
    _seed(plan.config.seed)

    def progress(done: int, total: int, what: str) -> None:
        listen(Advanced(stage, done, total, what))

    try:
        if stage == QUANTIZATION:
            figures = quantize(plan, progress, listen)
        else:
            figures = _measure(plan, stage, subject, progress)
        samples = figures.pop("samples", [])
        record = make_record(
            plan,
            stage,
            started_at=started_at,
            seconds=time.perf_counter() - started,
            threads=torch.get_num_threads(),
            **figures,
        )
        plan.store.write(record, samples)
    except Exception as error:
        traceback.print_exc()
        failure = Failure(stage=stage, type=type(error).__name__, message=_message(error))
        record = failed_record(
            plan, failure, started_at, time.perf_counter() - started, torch.get_num_threads()
        )
        _record_failure(plan, record, listen)
        return False
    listen(Finished(stage, record.seconds))
    return True


def quantize(plan: CellPlan, progress: Any, listen: Listener) -> dict[str, Any]:
    """Quantize the model of a cell into its artifact; what the record says about it.

    The memory plan is told first. A quantization that was interrupted is continued, which is told.
    """
    from quant.calibrate.devices import visible_devices
    from quant.calibrate.stream import Workplace
    from quant.checkpoint.make import quantize_to

    config, clock = plan.config, _Clock()
    folder = plan.artifact
    assert folder is not None
    assert plan.keys is not None
    how = quantization_plan(config)
    memory = quantization_memory(config, how)
    listen(Planned(QUANTIZATION, tuple(memory.rows())))
    devices = visible_devices(config.runtime.device)
    method = {**plan.keys.semantic["method"], "calib": plan.keys.semantic["calib"]}
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with open_source(config) as source:
        tokenizer = load_tokenizer(config.model)
        clock.lap("load model")
        windows, inputs = calibration(config, source.model, tokenizer)
        clock.lap("calibration text")
        resuming = Resuming(folder, len(source.blocks), listen)
        result = quantize_to(
            folder,
            source,
            windows,
            how,
            model_hash=plan.keys.inputs[QUANTIZATION]["model"],
            method=method,
            tokenizer=model_folder(config.model),
            progress=resuming.watch(progress),
            workplace=Workplace(devices, memory.activations),
        )
        resuming.tell(result.resumed)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    peaks = [stage.peak_bytes for stage in result.stages if stage.peak_bytes is not None]
    return {
        "metrics": quantization_cost.metrics(result, size, clock.seconds),
        "kernel": kernel_of(config) if config.method.name == "gptq" else None,
        "layers": [LayerReport(**asdict(layer)) for layer in result.layers],
        "inputs": {**inputs, "artifact": artifact_digest(folder)},
        "peak_memory_bytes": max(peaks, default=None),
        "placement": {
            "activations": memory.activations,
            "devices": ", ".join(str(device) for device in devices),
            "blocks resumed": str(result.resumed),
        },
        "bits_per_weight": quantization_cost.bits_per_weight(result.layers),
    }


def calibration(config: CellConfig, model: Any, tokenizer: Any) -> tuple[list[Any], dict[str, str]]:
    """Calibration windows and their hashes; none for a method that sees no data."""
    if config.method.name != "gptq":
        return [], {}
    context = protocols.context_length(model.config, config.model.context)
    found = protocols.calibration_windows(config.calib, tokenizer, context, config.paths.data)
    return found.windows, {
        "calibration tokens": found.token_hash,
        "calibration text": found.text_hash,
        "calibration source": found.source,
    }


def quantization_plan(config: CellConfig) -> Any:
    """The quant.config.QuantizationConfig that a configuration stands for."""
    from quant.config import QuantizationConfig
    from quant.solvers import gptq, rtn

    method, scheme = config.method, make_scheme(config.scheme)
    assert scheme is not None
    if method.name == "rtn":
        return QuantizationConfig(rtn.SOLVER, scheme)
    if method.name != "gptq":
        raise ConfigError(f"method.name={method.name} has no solver that would make its weights.")
    options = gptq.Options(
        damping=method.damping,
        damping_ladder=tuple(method.damping_ladder),
        block_size=method.block_size,
        act_order=method.act_order,
        static_groups=method.static_groups,
        group_grid=method.group_grid,
        true_sequential=method.true_sequential,
    )
    return QuantizationConfig(gptq.SOLVER, scheme, options, kernel=kernel_of(config))


def _measure(plan: CellPlan, stage: str, subject: Subject, progress: Any) -> dict[str, Any]:
    """Run one suite on the loaded model, or block by block on one that does not fit."""
    if not subject.streams():
        return _run_suite(plan, stage, subject, progress, subject.model(), None)
    if stage not in STREAMING:
        raise refuse_whole_model(stage, plan.config, subject.packed)
    shape, _ = measured_shape(plan.config, subject.packed)
    assert plan.keys is not None
    scratch = plan.store.root / "scratch" / f"{stage}-{plan.keys.stages[stage][:KEY_DIGITS]}"
    with subject.open() as source:
        streamed = StreamedModel(source, shape, plan.config, scratch)
        figures = _run_suite(plan, stage, subject, progress, source.model, streamed)
    activations = streamed.activations or "none"
    return {**figures, "placement": {"streamed": "block by block", "activations": activations}}


def _run_suite(
    plan: CellPlan,
    stage: str,
    subject: Subject,
    progress: Any,
    model: Any,
    streamed: StreamedModel | None,
) -> dict[str, Any]:
    config = plan.config
    context = SuiteContext(
        model=model,
        tokenizer=subject.tokenizer(),
        load_twin=subject.twin,
        load_reference=subject.reference,
        quantized=subject.quantized,
        has_original=not subject.loaded,
        kernel=subject.kernel,
        device=config.runtime.device,
        dtype=config.model.dtype,
        seed=config.seed,
        data_dir=None if config.paths.data is None else Path(config.paths.data),
        progress=progress,
        context_length=config.model.context,
        streamed=None if streamed is None else streamed.logits,
    )
    suite = importlib.import_module(SUITES[stage])
    result: list[SuiteResult] = []
    peak = measure_peak(
        lambda: result.append(suite.run(context, getattr(config.suite, stage))),
        config.runtime.device,
    )
    return {
        "metrics": result[0].metrics,
        "inputs": {**subject.inputs, **result[0].inputs},
        "samples": result[0].samples,
        "peak_memory_bytes": peak.bytes,
        "bits_per_weight": subject.bits_per_weight,
        "kernel": subject.kernel,
    }


def _record_failure(plan: CellPlan, record: Record, listen: Listener) -> None:
    """Write that a stage failed; on a full disk the listener still learns about it."""
    assert record.error is not None
    try:
        plan.store.write(record)
    except (StoreError, OSError):
        traceback.print_exc()
    listen(Failed(record.suite, record.error.type, record.error.message))


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError):
        text = f"{text.splitlines()[0]} Use a smaller batch size, a smaller model or runtime=cpu."
    # What else went wrong beside it, such as the block before it that could not be written.
    return " ".join([text or type(error).__name__, *getattr(error, "__notes__", ())])


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


class _Clock:
    """Seconds of consecutive steps by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
