"""Resolve a configuration to a cell: import parts, type options, find the model, make keys.

Nothing reads the configuration afterwards. An impossible one is a ConfigError before any weight is
read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cuda_ext.kernels import resolve_kernel
from harness.cell import checks, fits
from harness.cell.cells import PendingCell, ResolvedCell, activations_of, quantization_of
from harness.cell.choices import Choices
from harness.cell.devices import asked_for, devices_for
from harness.cell.keys import cell_keys
from harness.cell.parts import (
    ARITHMETIC_KEY,
    MODULE,
    Measuring,
    Solving,
    Transforming,
    build_part,
    load_part,
)
from harness.cell.schemes import make_scheme
from harness.config.help import options_with
from harness.config.options import build_options
from harness.config.schema import CellConfig, RuntimeConfig
from harness.data import lock
from harness.errors import ConfigError, MissingData, Unavailable
from harness.models.model import (
    AbsentModel,
    Model,
    QuantizedModel,
    RandomModel,
    StoredModel,
    find_model,
)
from harness.models.streaming import model_facts, parameters, with_attention
from harness.models.whole import require_whole
from harness.suites.base import Facts, Suite
from quant.allocation import Allocation, AskedScheme
from quant.arithmetic import AUTO, resolve_arithmetic
from quant.budget import AnyScheme
from quant.errors import QuantizationError, SchemeError
from quant.levels.base import Levels, built_in_levels
from quant.parts import Part
from quant.rules import RULES, TOKEN_RULES, Rules
from quant.solvers.base import Solver
from quant.transforms.base import Transform

Known = dict[tuple[str, Part | None], Model | AbsentModel]  # by its configuration and levels


def resolve(
    config: CellConfig,
    folder: Path | None = None,
    download: bool = False,
    or_reason: bool = False,
    without_data: bool = False,
    elsewhere: bool = False,
    known: Known | None = None,
) -> ResolvedCell | PendingCell:
    """Resolve a configuration to its cell; pending if its model is not on this machine.

    folder     the user's configuration folder, whose modules the configuration may name.
    download   download a model of the hub first.
    or_reason  return a pending cell with its reason for a model that cannot be had here.
    without_data  the same for a calibration text, and leave out suites whose data cannot be had.
    elsewhere  the cell runs on another machine: its device and kernel may be missing here.
    known      models that cells resolved just before have found; filled.

    Raises ConfigError, and ModelError for a model that cannot be found or downloaded.
    """
    checks.values(config)
    lock.use(Path(config.paths.results))
    measured = _levels("model.levels", config.model.levels, folder)
    # The model is checked first: everything else depends on it.
    try:
        model = _find_model(config, download, measured, {} if known is None else known)
    except Unavailable as error:
        if not or_reason:
            raise
        absent = AbsentModel(config.model)
        return PendingCell(_choices(config, absent, folder, measured), absent, str(error))
    choices = _choices(config, model, folder, measured)
    checks.method_and_scheme(choices.solving, choices.scheme, model)
    checks.random_weights(config, choices.solving, choices.suites, model)
    checks.outside(choices.solving, choices.scheme)
    checks.scheme_of_solver(choices.solving, choices.scheme)
    checks.allocation(choices.transforms, choices.scheme)
    checks.suites(choices.suites, activations_of(choices, model))
    _require_quantization(choices)
    facts = _facts(config, model, choices)
    checks.runtime(config, choices.suites, elsewhere)
    asked_for(config.runtime, elsewhere)
    try:
        lacking = _absent_suites(choices, facts, without_data)
        if choices.calibration is not None:
            checks.calibration(
                choices.calibration,
                choices.solving,
                choices.transforms,
                config.paths.data,
                model,
            )
    except MissingData as error:
        if not without_data:
            raise
        return PendingCell(choices, AbsentModel(config.model), str(error))
    kept = tuple(each for each in choices.suites if each.suite.name not in lacking)
    choices = dataclasses.replace(choices, suites=kept)
    if isinstance(model, AbsentModel):
        return PendingCell(choices, model)
    if not isinstance(model, RandomModel):
        fits.check(choices, model)
        require_whole(model, measured)
    choices = _with_arithmetic(choices, model)
    quantized = choices.solving is not None or model.checkpoint is not None
    kernel = _kernel(config.runtime, quantized, elsewhere)
    devices = devices_for(choices, model, kernel, elsewhere)
    if not elsewhere:  # devices of another machine are not here to be described
        facts = _facts(config, model, choices, devices.home, devices.all[1:])
    keys = cell_keys(choices, model, kernel, facts, devices.semantics())
    expected = dict(config.model.expected)
    return ResolvedCell(choices, model, kernel, keys, expected, devices, lacking)


def _require_quantization(choices: Choices) -> None:
    """Raise ConfigError for parts that no quantization takes together."""
    if not choices.quantizes or not choices.solves:
        return
    try:
        quantization_of(choices, choices.runtime.kernel)
    except QuantizationError as error:
        raise ConfigError(str(error)) from error


def _find_model(
    config: CellConfig, download: bool, levels: Part | None, known: Known
) -> Model | AbsentModel:
    """The model with its attention; one that is among `known` is not looked for again."""
    key = (repr(config.model), levels)
    model = known.get(key)
    if model is None or (download and isinstance(model, AbsentModel)):
        model = find_model(config.model, download, levels)
        if isinstance(model, StoredModel | QuantizedModel):
            model = with_attention(model)
        known[key] = model
    return model


def _absent_suites(
    choices: Choices, facts: Callable[[str], Facts], without_data: bool
) -> dict[str, str]:
    """Check the suites; return why the data of some cannot be had, by name.

    Raises MissingData if that holds for all of them, or if not without_data for any.
    """
    absent: dict[str, str] = {}
    for each in choices.suites:
        try:
            each.suite.check(each.config, facts(f"suite.{each.suite.name}"))
        except MissingData as error:
            absent[each.suite.name] = str(error)
            if not without_data or len(absent) == len(choices.suites):
                raise
    return absent


def _choices(
    config: CellConfig,
    model: Model | AbsentModel,
    folder: Path | None,
    measured: Part | None,
) -> Choices:
    solving = _solving(config.method, folder)
    transforms = tuple(
        Transforming(*_selected("transform", name, given, "TRANSFORM", Transform, folder))
        for name, given in config.transform.items()
    )
    measuring = [
        Measuring(*_selected("suite", name, given, "SUITE", Suite, folder))
        for name, given in config.suite.items()
    ]
    configs = [each.config for each in measuring]
    for index, each in enumerate(measuring):
        others = configs[:index] + configs[index + 1 :]
        completed = each.suite.complete(each.config, config.model, others)
        measuring[index] = dataclasses.replace(each, config=completed)
    # Timed suites run last, because users want accuracy first.
    measuring.sort(key=lambda each: each.suite.timing)
    levels = _levels("scheme.levels", config.scheme.levels, folder)
    scheme = make_scheme(config.scheme, levels)
    checks.transforms(transforms, solving)
    # Transforms, and schemes that are chosen, are computed from the inputs of layers.
    reads = bool(transforms) or isinstance(scheme, Allocation)
    sees_text = solving is not None and (solving.solver.needs_calibration or reads)
    return Choices(
        name=config.name,
        seed=config.seed,
        solving=solving,
        transforms=transforms,
        scheme=scheme if model.checkpoint is None else model.checkpoint.scheme,
        levels=levels if model.checkpoint is None else measured,
        calibration=config.calib if sees_text else None,
        suites=tuple(measuring),
        runtime=config.runtime,
        tracker=config.tracker,
        results=Path(config.paths.results),
        data=config.paths.data,
    )


def _solving(method: Mapping[str, Any], folder: Path | None) -> Solving | None:
    if "solver" not in method:
        raise ConfigError(
            "method has no solver: give the module of one, as in method.solver=quant.solvers.gptq, "
            "or null for full precision, in the file that method=NAME chooses."
        )
    arithmetic = method.get(ARITHMETIC_KEY, AUTO)
    checks.arithmetic(arithmetic)
    if method["solver"] is None:
        # An experiment may set one arithmetic for all methods; method=none ignores it.
        for key in (key for key in method if key not in ("solver", ARITHMETIC_KEY)):
            raise ConfigError(
                f"method.{key}={method[key]} has no effect, because method.solver is null "
                f"(full precision): leave it out, or use {_methods_with(key, folder)}."
            )
        return None
    if MODULE in method:
        raise ConfigError(
            f"method.{MODULE}={method[MODULE]} is not a key of a method: its module is named by "
            "method.solver."
        )
    given = {MODULE if key == "solver" else key: v for key, v in method.items() if key not in RULES}
    given.pop(ARITHMETIC_KEY, None)
    others = lambda key: options_with("method", key, folder)  # noqa: E731
    allowed = {key: value for key, value in method.items() if key in RULES}
    rules = build_options(Rules, allowed, "method", "quant.rules")
    built = build_part("method", given, "SOLVER", Solver, folder, others)
    solving = Solving(*built, rules, arithmetic)
    unread = [key for key in TOKEN_RULES if key in allowed]
    if unread and not solving.solver.needs_calibration:
        raise ConfigError(
            f"method.{unread[0]}={allowed[unread[0]]} applies to calibration tokens, which "
            f"{solving.solver.label} does not use: leave it out, or use "
            f"{_methods_with(unread[0], folder)}."
        )
    return solving


def _with_arithmetic(choices: Choices, model: Model) -> Choices:
    """Choices with the arithmetic of calibration: the configured one, or by the rule."""
    solving = choices.solving
    if solving is None or choices.arithmetic is None or not isinstance(model, StoredModel):
        return choices
    device = choices.runtime.device
    by_rule = resolve_arithmetic(AUTO, device, parameters(model))
    found = by_rule if solving.arithmetic == AUTO else solving.arithmetic
    said = () if found == by_rule else (f"{found} arithmetic",)
    return dataclasses.replace(
        choices, solving=dataclasses.replace(solving, arithmetic=found, said=said)
    )


def _methods_with(key: str, folder: Path | None) -> str:
    return " or ".join(options_with("method", key, folder)) or "a method that has it"


def _selected(
    group: str, name: str, given: Any, attribute: str, kind: type, folder: Path | None
) -> tuple[Part, Any]:
    """Load one of several parts of a group, whose key must be the name of its spec."""
    key = f"{group}.{name}"
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{key}={given} names no module: a file of conf/{group} holds {name} with `module` and "
            "the options below it."
        )
    if MODULE not in given:
        keys = ", ".join(f"{key}.{each}" for each in given)
        raise ConfigError(
            f"{keys or key} cannot be set, because {group} {name} is not selected: add it to "
            f"{group}=[...], or leave the key out."
        )
    part, options = build_part(key, given, attribute, kind, folder)
    spec: Any = part.load(attribute, kind)
    if spec.name != name:
        raise ConfigError(
            f"{key} names the module {part.module}, whose {group} is called {spec.name}: rename "
            "one of the two, because records are kept under that name."
        )
    return part, options


def _levels(key: str, name: str | None, folder: Path | None) -> Part | None:
    """The user's module of levels that `key` names; None for built-in levels."""
    ours = [each.name for each in built_in_levels()]
    if name is None or name in ours:
        return None
    try:
        part, _ = load_part(key, name, "LEVELS", Levels, folder)
    except ConfigError as error:
        said = str(error).removesuffix(".")
        raise ConfigError(f"{said}; levels of Bitsweep itself are {', '.join(ours)}.") from error
    return part


def _facts(
    config: CellConfig,
    model: Model | AbsentModel,
    choices: Choices,
    home: str | None = None,
    others: tuple[str, ...] = (),
) -> Callable[[str], Facts]:
    schemes = _schemes(choices.scheme, model)
    transforms = tuple((each.transform, each.options) for each in choices.transforms)

    def facts(key: str) -> Facts:
        return Facts(
            key=key,
            model=model.name,
            shape=model.shape,
            data_dir=config.paths.data,
            device=home or config.runtime.device,
            devices=others,
            threads=config.runtime.threads,
            has_original=model.checkpoint is None,
            file=None if config.method.get("solver") else model.file,
            tokenizer=model.folder,
            schemes=schemes,
            transforms=transforms,
        )

    return facts


def _schemes(scheme: AskedScheme | None, model: Model | AbsentModel) -> tuple[AnyScheme, ...]:
    """The schemes of the layers in the blocks; all that they may have, if they are not known."""
    if scheme is None or isinstance(scheme, Allocation) or not scheme.layers:
        return () if scheme is None else tuple(scheme.every)
    if not isinstance(model, StoredModel | QuantizedModel):
        return tuple(scheme.every)
    names = model_facts(model).linears
    try:
        return tuple(dict.fromkeys(scheme.of(name).without_head for name in names))
    except SchemeError:  # two patterns of one layer, which fits.check refuses
        return tuple(scheme.every)


def _kernel(runtime: RuntimeConfig, quantized: bool, elsewhere: bool) -> str:
    """The kernel of the cell's solver and suites, with "auto" resolved."""
    if not quantized:
        return "torch"
    if elsewhere:  # where the device is, its compiled kernel is taken to be as well
        device = runtime.device.partition(":")[0]
        return device if runtime.kernel == "auto" else runtime.kernel
    return resolve_kernel(runtime.kernel, runtime.device)
