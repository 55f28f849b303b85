"""The quantization stage of a cell: by a solver of ours, or the whole model by another program."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.cell.cells import ResolvedCell
from harness.data import protocols, vocabulary
from harness.errors import StoreError
from harness.models.folders import weights_read
from harness.models.streaming import open_packed, open_source
from harness.records.busyness import Watch, said_busy
from harness.records.record import QUANTIZATION
from harness.records.store import artifact_digest, disk_errors, weights_digest
from harness.run.cards import origin
from harness.run.choosing import choose_schemes, costs_of, mixture_of, report_of
from harness.run.events import Listener, Planned
from harness.run.memory import planned_memory
from harness.run.recording import StageResult
from harness.run.resuming import Resuming
from harness.run.subject import stored
from harness.suites import quantization_cost
from quant.allocation import Allocation
from quant.checkpoint.folder import CARD
from quant.head import with_outside
from quant.scheme import Scheme
from quant.solvers.outside import Made, Request


def quantize(cell: ResolvedCell, progress: Any, listen: Listener) -> StageResult:
    """Quantize the model of a cell into its artifact.

    Sends the memory plan first (Planned), and Resumed if it continues an interrupted quantization;
    neither for another program, of which they are not known.
    """
    if cell.choices.solves:
        return _solve(cell, progress, listen)
    return _by_program(cell)


def _solve(cell: ResolvedCell, progress: Any, listen: Listener) -> StageResult:
    from quant.calibrate.devices import visible_devices
    from quant.calibrate.stream import Workplace
    from quant.checkpoint.make import quantize_to

    choices, model, folder, clock = cell.choices, cell.stored_model, cell.artifact, _Clock()
    watch = Watch()
    assert folder is not None
    memory = planned_memory(cell)
    listen(Planned(QUANTIZATION, tuple(memory.rows())))
    devices = visible_devices(choices.runtime.device)
    method = {**cell.keys.semantic["method"], "calib": cell.keys.semantic["calib"]}
    if choices.transforms:
        method["transform"] = cell.keys.semantic["transform"]
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    config, chosen = cell.quantization, None
    opened = partial(open_source, model, choices.runtime.device, choices.results)
    place = Workplace(devices, memory.activations)
    if isinstance(config.scheme, Allocation):
        with opened() as source:  # a source of its own, because transforms change its model
            windows, _ = calibration(cell, source.model, model.tokenizer())
            chosen = choose_schemes(cell, source, windows, progress, place)
        method["auto"] = cell.keys.semantic["scheme"]["auto"] | {"bits": config.scheme.bits}
        config = replace(config, scheme=chosen.scheme)
        clock.lap("choice of schemes")
    with opened() as source:
        tokenizer = model.tokenizer()
        clock.lap("load model")
        windows, inputs = calibration(cell, source.model, tokenizer)
        clock.lap("calibration text")
        resuming = Resuming(folder, len(source.blocks), listen)
        result = quantize_to(
            folder,
            source,
            windows,
            config,
            model_hash=model.fingerprint,
            method=with_outside(method, config.scheme),
            tokenizer=model.folder,
            progress=resuming.watch(progress),
            workplace=place,
            origin=origin(cell),
        )
        resuming.tell(result.resumed)
        weights = weights_read(model.folder, source.model)
    costs = [] if chosen is None else costs_of(cell, chosen, result.layers, windows)
    busy = said_busy(watch.usage())
    size = _bytes(folder)
    peaks = [stage.peak_bytes for stage in result.stages if stage.peak_bytes is not None]
    return StageResult(
        metrics=[*quantization_cost.metrics(result, size, clock.seconds, busy), *costs],
        layers=[report_of(layer, chosen) for layer in (*result.layers, *result.outside)],
        inputs={
            **inputs,
            "artifact": artifact_digest(folder),
            "weights": weights_digest(folder),
        },
        weights=weights,
        placement={
            "activations": memory.activations,
            "devices": ", ".join(str(device) for device in devices),
            "blocks resumed": str(result.resumed),
            **({} if result.removed is None else {"removed": result.removed}),
        },
        peak_memory_bytes=max(peaks, default=None),
        bits_per_weight=quantization_cost.bits_per_weight(result),
        coverage=result.coverage.share,
        outside=result.coverage.outside(),
        mixture=mixture_of(result.layers, costs),
        kernel=cell.kernel if cell.quantization.solver.uses_kernel else None,
    )


def _by_program(cell: ResolvedCell) -> StageResult:
    """Let another program quantize the model; check its checkpoint, and publish it as the artifact.

    The files stay as the program wrote them, in its own format.
    """
    from quant.checkpoint.files import copy_files, tokenizer_files
    from quant.checkpoint.folder import replace_folder

    choices, model, folder, clock = cell.choices, cell.stored_model, cell.artifact, _Clock()
    solving, scheme = choices.solving, choices.scheme
    assert folder is not None
    assert solving is not None
    assert isinstance(scheme, Scheme)  # no program is asked for anything else
    assert solving.solver.whole is not None
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with open_source(model, choices.runtime.device, choices.results) as source:
        windows, inputs = calibration(cell, source.model, model.tokenizer())
        weights = weights_read(model.folder, source.model)
    clock.lap("calibration text")
    with replace_folder(folder, needed_bytes=0) as partial:
        request = Request(
            model=model.folder,
            windows=[window.tolist() for window in windows],
            scheme=scheme,
            out=partial,
            device=choices.runtime.device,
            seed=choices.seed,
            threads=choices.runtime.threads,
        )
        watch = Watch()
        made: Made = solving.solver.whole(request, solving.options)
        busy = said_busy(watch.usage())
        clock.lap("program")
        said = _examined(cell, partial)
        if not tokenizer_files(partial):
            copy_files(tokenizer_files(model.folder), partial)
    with open_packed(model, folder, cell.place) as packed:
        layers = packed.layer_bits()
        bits, covered = stored(packed.model, layers.values(), packed.operator_bits(), set(layers))
    size = _bytes(folder)
    return StageResult(
        metrics=quantization_cost.of_program(made, size, clock.seconds, busy),
        inputs={
            **inputs,
            "artifact": artifact_digest(folder),
            "weights": weights_digest(folder),
        },
        weights=weights,
        placement={"program": made.version, **said},
        peak_memory_bytes=made.peak_bytes,
        bits_per_weight=bits,
        coverage=covered.share,
        outside=covered.outside(),
    )


def _bytes(folder: Path) -> int:
    """Size of an artifact, without its card: a text for people, which may change."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if file.name != CARD)


def _examined(cell: ResolvedCell, folder: Path) -> dict[str, str]:
    """What a program's checkpoint is, for the record; StoreError if it is not what was asked."""
    from quant import ArtifactError
    from quant.checkpoint import read_scheme

    asked = cell.choices.scheme
    assert isinstance(asked, Scheme)
    levels = () if cell.choices.levels is None else (cell.choices.levels,)
    try:
        found, scheme = read_scheme(folder, levels)
    except ArtifactError as error:
        raise StoreError(
            f"{cell.identity.method} left no checkpoint to measure: {error}"
        ) from error
    if found.mixture:
        raise StoreError(
            f"{cell.identity.method} was asked for {asked.name} and left several schemes "
            f"({found.mixture}): a record must name the scheme of its weights; correct the program."
        )
    for field in ("bits", "group_size", "symmetric", "kind", "head", "embeddings"):
        wanted, got = getattr(asked, field), getattr(scheme, field)
        if wanted != got:
            raise StoreError(
                f"{cell.identity.method} was asked for {asked.name} and left {scheme.name} "
                f"({found.name}): a record must name the scheme of its weights; ask for "
                f"scheme={scheme.name}, or correct the program."
            )
    assert isinstance(scheme, Scheme)
    other = {} if scheme.scale_dtype == asked.scale_dtype else {"scales": scheme.scale_dtype}
    return {"format": found.name, **other}


def calibration(cell: ResolvedCell, model: Any, tokenizer: Any) -> tuple[list[Any], dict[str, str]]:
    """Calibration windows and their hashes; both empty for a cell without calibration."""
    calib = cell.choices.calibration
    if calib is None:
        return [], {}
    context = protocols.context_length(model.config, cell.model.config.context)
    found = protocols.calibration_windows(
        calib,
        tokenizer,
        context,
        cell.choices.data,
        load_model=lambda: cell.stored_model.load(cell.place),
    )
    vocabulary.check_windows(found, tokenizer, model)
    return found.windows, {
        "calibration tokens": found.token_hash,
        "calibration text": found.text_hash,
        "calibration source": found.source,
        "calibration special tokens": found.special,
    }


class _Clock:
    """Seconds of consecutive steps by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
