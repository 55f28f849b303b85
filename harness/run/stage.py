"""The stages of one cell: quantize (or reuse the artifact), load the packed weights, run suites.

Runs in the process that harness.run.process starts. Every stage ends with a record, even if it
failed. A failed suite does not stop the others; a failed quantization stops the cell.
"""

from __future__ import annotations

import random
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.cell.cells import ResolvedCell
from harness.cell.parts import Measuring
from harness.cell.plan import plan_cell
from harness.data import lock
from harness.errors import StoreError
from harness.models.streaming import (
    StreamedModel,
    measured_shape,
    refuse_whole_model,
)
from harness.records.record import QUANTIZATION, Failure
from harness.records.store import KEY_DIGITS, disk_errors
from harness.run.cards import write_figures
from harness.run.devices import devices_for
from harness.run.events import Advanced, Failed, Finished, Listener, Queued, Started, Waiting
from harness.run.memory import suite_memory
from harness.run.quantizing import quantize
from harness.run.recording import StageResult, Timing, failed_record, make_record, now
from harness.run.subject import Subject
from harness.run.threads import Threads
from harness.suites.base import SuiteContext, SuiteResult, require_figures
from harness.suites.memory import measure_peak
from quant.memory.heaps import trim_heap
from quant.spread.connect import spread_of

# What runs a model over several devices.
LOOP = "the harness's own, no serving engine"


def run_cell(cell: ResolvedCell, listen: Listener, skip: frozenset[str] = frozenset()) -> None:
    """Run the stages of a cell that have no record yet, under the cell's lock.

    skip  stages that must not be tried, because they killed the process before.

    Failures of stages are recorded and sent to `listen`. Raises StoreError only if the store cannot
    be locked.
    """
    lock.use(cell.choices.results)
    with cell.store.lock(cell.keys.cell, lambda who: listen(Waiting(who))):
        todo = plan_cell(cell).todo  # another process may have worked on it meanwhile
        subject = Subject(cell, lambda who: listen(Waiting(who, "the same reference")))
        threads = Threads(cell.choices.runtime.threads)
        for stage in cell.keys.stages:
            if stage in skip:
                continue
            if stage not in todo:
                listen(Finished(stage, 0.0, cached=True))
            elif not _attempt(cell, stage, subject, threads, listen) and stage == QUANTIZATION:
                return
            elif stage == QUANTIZATION:
                todo = plan_cell(cell).todo  # figures of an earlier artifact do not count
        with disk_errors(cell.store.root):
            write_figures(cell)


def _attempt(
    cell: ResolvedCell, stage: str, subject: Subject, threads: Threads, listen: Listener
) -> bool:
    """Run one stage on its device and write its record; return False if it failed."""
    alone = stage != QUANTIZATION and cell.measuring(stage).suite.timing
    devices = cell.devices.all
    with devices_for(cell.store.root, devices, alone, lambda it: listen(Queued(stage, it))):
        return _on_device(cell, stage, subject, threads, listen)


def _on_device(
    cell: ResolvedCell, stage: str, subject: Subject, threads: Threads, listen: Listener
) -> bool:
    listen(Started(stage))
    trim_heap()  # memory freed by earlier stages does not count
    started_at, started = now(), time.perf_counter()
    _seed(cell.choices.seed)
    threads.begin()

    def progress(done: int, total: int, what: str) -> None:
        listen(Advanced(stage, done, total, what))

    def timing() -> Timing:
        seconds = time.perf_counter() - started
        return Timing(started_at, seconds, torch.get_num_threads(), threads.entries())

    try:
        if stage == QUANTIZATION:
            result = quantize(cell, progress, listen)
        else:
            result = _measure(cell, cell.measuring(stage), subject, threads, progress)
        record = make_record(cell, stage, result, timing())
        cell.store.write(record, result.samples)
    except Exception as error:
        traceback.print_exc()
        failure = Failure(stage=stage, type=type(error).__name__, message=_message(error))
        _record_failure(cell, failure, timing(), listen)
        return False
    if record.error is not None:
        listen(Failed(stage, record.error.type, record.error.message))
        return False
    listen(Finished(stage, record.seconds))
    return True


def _measure(
    cell: ResolvedCell, measuring: Measuring, subject: Subject, threads: Threads, progress: Any
) -> StageResult:
    """Run one suite on the loaded model, or block by block if the model does not fit."""
    if not measuring.suite.loads and subject.has_files:
        model = subject.structure()
        trim_heap()
        return _run_suite(cell, measuring, subject, threads, progress, model, None)
    streaming = [each for each in cell.choices.suites if each.suite.streams]
    batch = max((getattr(each.config, "batch_size", 1) for each in streaming), default=1)
    if not subject.streams(batch):
        suite_memory(cell, measuring, subject.loaded)  # refuses what does not fit
        return _run_suite(cell, measuring, subject, threads, progress, subject.model(), None)
    suite, runtime, scheme = measuring.suite, cell.choices.runtime, cell.choices.scheme
    if not suite.streams:
        names = [each.suite.name for each in streaming]
        raise refuse_whole_model(
            suite.name, names, cell.model, subject.packed, runtime.device, scheme
        )
    shape, _ = measured_shape(cell.model, subject.packed, scheme)
    with subject.open() as source:
        streamed = StreamedModel(source, shape, runtime.activations, _scratch(cell, suite.name))
        result = _run_suite(cell, measuring, subject, threads, progress, source.model, streamed)
    placement = {"streamed": "block by block", "activations": streamed.activations or "none"}
    return replace(result, placement=placement)


def _scratch(cell: ResolvedCell, stage: str) -> Path:
    return cell.store.root / "scratch" / f"{stage}-{cell.keys.stages[stage][:KEY_DIGITS]}"


def _run_suite(
    cell: ResolvedCell,
    measuring: Measuring,
    subject: Subject,
    threads: Threads,
    progress: Any,
    model: Any,
    streamed: StreamedModel | None,
) -> StageResult:
    choices, devices = cell.choices, cell.devices.all
    context = SuiteContext(
        model=model,
        tokenizer=subject.tokenizer(),
        load_baseline=subject.baseline,
        load_reference=subject.reference,
        quantized=subject.quantized,
        has_original=subject.has_original,
        kernel=cell.kernel,
        device=cell.devices.home,
        devices=devices if len(devices) > 1 else (),
        dtype=cell.model.config.dtype,
        seed=choices.seed,
        data_dir=None if choices.data is None else Path(choices.data),
        progress=progress,
        context_length=cell.model.config.context,
        packed=subject.packed,
        source=cell.model.folder if subject.has_original else None,
        file=subject.file,
        streamed=None if streamed is None else streamed.logits,
        activations=choices.runtime.activations,
        scratch=_scratch(cell, measuring.suite.name),
        kept=subject.kept,
    )
    threads.follow()  # the model is loaded, so that loading tells how busy others are
    found: list[SuiteResult] = []
    peak = measure_peak(
        lambda: found.append(measuring.suite.run(context, measuring.config)), devices
    )
    require_figures(measuring.suite, found[0])
    spread = spread_of(model)
    return StageResult(
        metrics=found[0].metrics,
        inputs={**subject.inputs, **found[0].inputs},
        samples=found[0].samples,
        weights=subject.weights(model),
        failures=found[0].failures,
        peak_memory_bytes=peak.bytes,
        bits_per_weight=subject.bits_per_weight,
        coverage=subject.coverage,
        outside=subject.outside,
        mixture=subject.mixture,
        kernel=cell.kernel,
        placement={} if spread is None else {"devices": spread.said(), "loop": LOOP},
    )


def _record_failure(cell: ResolvedCell, failure: Failure, timing: Timing, listen: Listener) -> None:
    """Record the failure of a stage and send it, even if the record cannot be written."""
    try:
        cell.store.write(failed_record(cell, failure, timing))
    except (StoreError, OSError):
        traceback.print_exc()
    listen(Failed(failure.stage, failure.type, failure.message))


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, torch.OutOfMemoryError):
        text = f"{text.splitlines()[0]} Use a smaller batch size, a smaller model or runtime=cpu."
    # Notes are other errors at the same time, such as a block that could not be written.
    return " ".join([text or type(error).__name__, *getattr(error, "__notes__", ())])


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
