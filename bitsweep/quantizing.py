"""Quantize a model in memory or a folder, with few words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitsweep.sources import find_model, windows_of
from quant.allocate.run import COSTS, choose
from quant.allocation import Allocation, AskedScheme
from quant.arithmetic import AUTO
from quant.budget import Budget, parse_scheme
from quant.calibrate.devices import visible_devices
from quant.calibrate.run import Progress
from quant.calibrate.sink import InMemorySink
from quant.calibrate.source import BlockSource, LoadedModel
from quant.calibrate.stream import (
    QuantizationResult,
    Workplace,
    quantize_blocks,
    quantize_model,
)
from quant.checkpoint.card import Origin
from quant.checkpoint.files import tokenizer_files
from quant.checkpoint.folder import working_folder
from quant.checkpoint.make import files_hash, quantize_to, windows_hash
from quant.checkpoint.source import CheckpointSource
from quant.checkpoint.writer import save
from quant.config import QuantizationConfig
from quant.errors import QuantizationError
from quant.head import with_outside
from quant.levels.base import built_in_levels
from quant.memory.limits import free_memory
from quant.memory.plan import plan_quantization
from quant.memory.shapes import model_shape
from quant.parts import PartError, find_part
from quant.rules import STRICT, Rules
from quant.solvers.base import Solver, method_description
from quant.transforms.base import Transform, transform_description

Spec = TypeVar("Spec")
Tokenizer = PreTrainedTokenizerBase | str | Path
Windows = Callable[[PreTrainedModel], list[Tensor]]


def quantize(
    model: str | Path | PreTrainedModel,
    scheme: str | AskedScheme,
    calibration: str | Path | Sequence[Tensor] | None = None,
    *,
    out: str | Path | None = None,
    method: str | Solver = "gptq",
    options: Mapping[str, Any] | None = None,
    transforms: Sequence[str | Transform] = (),
    sequences: int = 128,
    length: int | None = None,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    kernel: str = "auto",
    arithmetic: str = AUTO,
    rules: Rules = STRICT,
    progress: Progress | None = None,
) -> QuantizationResult:
    """Quantize the linear layers in the blocks of a causal language model, and its head if asked.

    model        a model folder, whose blocks are read one at a time; "embedded" or another name of
                 conf/model; "OWNER/NAME" of the hub; or a model in memory, which is changed in
                 place: its weights become the dequantized values.
    scheme       "w4g128" or Scheme(4, 128); "w4g64_head_w8g32" packs the head too. Layers may have
                 others, Scheme(3, 64, layers={"*.down_proj": Scheme(4, 64)}), and an Allocation
                 chooses one for each.
    calibration  windows of token ids [tokens]; the name of a text ("embedded", "c4", "wikitext2";
                 conf/calib); or the Path of a text file. None for a method that sees no text.
    out          the folder to write, which `load` reads; a killed run of a model folder goes on
                 there. None: the weights are in the result alone.
    method       a solver: "gptq", "rtn", the dotted name of a module, or a Solver; options are
                 its own, {"act_order": True}.
    transforms   what is done to weights before: "equalize", or Transform objects.
    sequences, length, seed
                 windows of a named text; length None: 2048, or all that a shorter context holds.
    tokenizer    of a model in memory, or its folder: reads the text, is written to `out`.
    device       that a folder's blocks run on; None: the CPU.
    dtype        that a folder is read in; None: that of its files (of a name: conf/model says).
    rules        what may be done otherwise than asked: Rules(partial=True).
    progress     progress(done, total, name) after every layer.

    Raises QuantizationError (SchemeError for a scheme), one sentence with the way out, before
    anything is changed or written where that can be known; BitsweepError for names and texts.
    """
    solver = _part(method, "solvers", "SOLVER", Solver)
    config = QuantizationConfig(
        solver=solver,
        scheme=parse_scheme(scheme) if isinstance(scheme, str) else scheme,
        options=None if options is None else _options(solver, options),
        transforms=tuple(
            (_part(each, "transforms", "TRANSFORM", Transform), None) for each in transforms
        ),
        kernel=kernel,
        rules=rules,
        arithmetic=arithmetic,
    )
    target = None if out is None else Path(out)
    place = tokenizer
    if not isinstance(model, PreTrainedModel):
        found = find_model(model, dtype)
        place = found.folder if tokenizer is None else tokenizer

    def windows(whole: PreTrainedModel) -> list[Tensor]:
        if calibration is None or not config.needs_calibration:
            return []
        return windows_of(calibration, whole, place, sequences, length, seed)

    if not isinstance(model, PreTrainedModel):
        on = torch.device("cpu" if device is None else device)
        again = _again(model, config, calibration, method, transforms, sequences, length, seed)
        origin = dataclasses.replace(found.origin, command=again if dtype is None else "")
        return _folder(found.folder, found.dtype, on, config, windows, target, progress, origin)
    if device is not None or dtype is not None:
        raise QuantizationError(
            "a model in memory has its own device and dtype: leave device and dtype out, or move "
            "the model with model.to(...)."
        )
    return _in_memory(model, config, windows, target, tokenizer, progress)


def _in_memory(
    model: PreTrainedModel,
    config: QuantizationConfig,
    windows: Windows,
    out: Path | None,
    tokenizer: Tokenizer | None,
    progress: Progress | None,
) -> QuantizationResult:
    seen = windows(model)
    if isinstance(config.scheme, Allocation):
        if config.transforms:
            raise QuantizationError(
                f"scheme {config.scheme.name} measures layers behind transform "
                f"{config.transforms[0][0].name}, which changes a model in memory: pass the folder "
                "of the model, or one scheme."
            )
        config = dataclasses.replace(config, scheme=choose(LoadedModel(model), seen, config).scheme)
    result = quantize_model(model, seen, config, progress)
    if out is not None:
        save(out, model, result.weights, method=_described(config, seen), tokenizer=tokenizer)
    return result


def _folder(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    config: QuantizationConfig,
    windows: Windows,
    out: Path | None,
    progress: Progress | None,
    origin: Origin,
) -> QuantizationResult:
    """Block by block; the memory plan says where activations wait, and whether all of it fits."""
    if isinstance(config.scheme, Allocation):
        kept = None if out is None else working_folder(out) / COSTS
        with CheckpointSource(folder, dtype, device) as source:
            seen = windows(source.model)
            found = choose(
                source, seen, config,
                kept=kept, model_hash=files_hash(folder), progress=progress,
                workplace=_place(source, config, seen, out),
            )  # fmt: skip
        config = dataclasses.replace(config, scheme=found.scheme)
    with CheckpointSource(folder, dtype, device) as source:
        seen = windows(source.model)
        place = _place(source, config, seen, out)
        if out is None:
            sink = InMemorySink()
            result = quantize_blocks(source, seen, config, sink, progress, place)
            return dataclasses.replace(result, weights=sink.weights)
        return quantize_to(
            out,
            source,
            seen,
            config,
            model_hash=files_hash(folder),
            method=_described(config, seen),
            tokenizer=folder if tokenizer_files(folder) else None,
            progress=progress,
            workplace=place,
            origin=origin,
        )


def _place(
    source: BlockSource, config: QuantizationConfig, windows: Sequence[Tensor], out: Path | None
) -> Workplace:
    """Where it runs, as the memory plan says; MemoryPlanError if it does not fit."""
    memory = plan_quantization(
        model_shape(source.model),
        config,
        tokens=sum(len(window) for window in windows),
        window=max((len(window) for window in windows), default=0),
        limits=free_memory(source.device, out),
    )
    return Workplace(visible_devices(source.device), memory.activations)


def _again(
    model: str | Path,
    config: QuantizationConfig,
    calibration: str | Path | Sequence[Tensor] | None,
    method: str | Solver,
    transforms: Sequence[str | Transform],
    sequences: int,
    length: int | None,
    seed: int,
) -> str:
    """The command that makes the artifact again; "" if a part has no name. Last names of paths."""
    parts = [method, *transforms]
    named = isinstance(calibration, str | Path | None) and all(isinstance(p, str) for p in parts)
    ours = {each.name for each in built_in_levels()}
    scheme = config.scheme
    if isinstance(scheme, Allocation) or scheme.layers:
        return ""
    known = isinstance(scheme, Budget) or scheme.kind.name in ours
    if not named or config.rules != STRICT or not known:
        return ""

    def last(path: str | Path) -> str:
        return Path(path).name if Path(path).exists() or isinstance(path, Path) else path

    given: dict[str, Any] = {"out": "OUT", "method": method}
    if config.options is not None:
        given["options"] = dataclasses.asdict(config.options)
    if transforms:
        given["transforms"] = list(transforms)
    if config.needs_calibration and isinstance(calibration, str | Path):
        text = last(calibration)
        given["calibration"] = text if isinstance(calibration, str) else Path(text)
        given |= {"sequences": sequences, "length": length, "seed": seed}
    if config.arithmetic != AUTO:
        given["arithmetic"] = config.arithmetic
    words = [repr(last(model)), repr(scheme.name)]
    words += [f"{name}={_python(value)}" for name, value in given.items()]
    return f'python -c "import bitsweep; bitsweep.quantize({", ".join(words)})"'


def _python(value: Any) -> str:
    return f"__import__('pathlib').Path({value.name!r})" if isinstance(value, Path) else repr(value)


def _described(config: QuantizationConfig, windows: Sequence[Tensor]) -> dict[str, Any]:
    """What made the weights, as config.json says it."""
    arithmetic = config.arithmetic if windows else None
    said = method_description(config.solver, config.options, config.rules, arithmetic)
    if windows:
        said["calib"] = {"windows": windows_hash(windows)}
    if config.transforms:
        said["transform"] = [
            transform_description(each, options) for each, options in config.transforms
        ]
    return with_outside(said, config.scheme)


def _part(given: str | Spec, package: str, attribute: str, kind: type[Spec]) -> Spec:
    """The spec of a part that is named: one of ours by its name, others by a dotted module."""
    if not isinstance(given, str):
        return given
    try:
        return find_part(given if "." in given else f"quant.{package}.{given}").load(
            attribute, kind
        )
    except PartError as error:
        raise QuantizationError(str(error)) from error


def _options(solver: Solver, given: Mapping[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(solver.options)]
    for name in given:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise QuantizationError(f"solver {solver.name} has no option {name!r}: {has}.")
    try:
        return solver.options(**given)
    except (TypeError, ValueError) as error:
        raise QuantizationError(f"solver {solver.name}: {error}") from error
