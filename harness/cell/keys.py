"""Keys of stages: the sha256 of everything that the figures of a stage depend on, and nothing else.

A stage is the quantization or a suite. Two runs that must give the same figures have the same key,
so a finished stage is never repeated. Anything that could change a digit (batch size, dtype,
device, kernel, attention) is in the key. Over how many devices a model is spread changes times
alone, because each block computes the same on each of equal devices: it is in the keys of suites
that measure time. How the work is carried out (threads, time limits,
folders, trackers, names of reports) is not, and neither are mere names (model.name, calib.name,
names of files whose contents are hashed).

The version of a solver or suite is in the key. It is raised when the same input gives other
figures; the old records stay on disk but are no longer found. For a user's part, the hash of its
source is in the key too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from harness.cell.choices import Choices
from harness.data import chat, protocols
from harness.data.inputs import calibration_settings, protocol_hash
from harness.errors import ConfigError
from harness.models.model import Model
from harness.records.hashes import digest
from harness.records.record import FULL_PRECISION, LOADED, QUANTIZATION
from harness.suites.base import Facts, require_own_inputs
from quant.allocation import KLD, VERSION, Allocation, AskedScheme
from quant.budget import NAME as BUDGET
from quant.budget import AnyScheme, Budget
from quant.head import method_outside
from quant.levels.base import module_of
from quant.scheme import OUTSIDE
from quant.solvers.base import method_description
from quant.transforms.base import transform_description

# The scheme fields in records of full precision.
NO_SCHEME = {
    "bits": 16,
    "group_size": None,
    "symmetric": False,
    "levels": "uniform",
    "grid": "minmax",
    "scale_dtype": "float16",
}
# Raise it when the keys of the same cells and stages change.
KEYS_VERSION = 2
# Names and origin of a model; the hash of its files identifies it.
NAMES = ("name", "source", "id", "revision", "architecture", "made_of")


@dataclasses.dataclass(frozen=True)
class StageKeys:
    """The keys of one cell.

    stages    keys by stage, in order.
    semantic  the configuration that determines the weights under test, for the record.
    inputs    hashes of the files that a stage reads, by stage.
    suites    configurations by suite, for the record.
    """

    cell: str
    stages: dict[str, str]
    semantic: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    suites: dict[str, dict[str, Any]]


def cell_keys(
    choices: Choices,
    model: Model,
    kernel: str,
    facts: Callable[[str], Facts],
    devices: Mapping[str, int] = MappingProxyType({}),
) -> StageKeys:
    """The keys of a cell's stages, in order, with what they were made from.

    devices  over how many its models are spread, if over several.
    """
    text = _calibration_inputs(choices, model)
    semantic = _semantics(choices, model)
    code = {part.module: part.sha256 for part in choices.weight_parts if part.sha256 is not None}
    if code:
        semantic["code"] = code
    cell = digest(
        {
            "keys": KEYS_VERSION,
            "cell": _content(semantic),
            "model": model.fingerprint,
            **text,
        }
    )
    execution = {"device": choices.runtime.device, "kernel": kernel}
    keys = StageKeys(cell, {}, semantic, {}, {})

    def add(
        stage: str,
        version: int,
        suite: dict[str, Any],
        inputs: dict[str, str],
        place: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        on: dict[str, Any] = {**execution, **place}
        if stage == QUANTIZATION and not _solves_on_kernel(choices):
            on = {"device": execution["device"]}  # independent of the kernel that the suites use
        keys.inputs[stage] = {"model": model.fingerprint, **text, **inputs}
        keys.stages[stage] = digest(
            {
                "stage": stage,
                "version": version,
                "cell": cell,
                "suite": _unnamed(suite, inputs),
                "inputs": keys.inputs[stage],
                "execution": on,
            }
        )

    if choices.quantizes:
        assert choices.solving is not None
        add(QUANTIZATION, choices.solving.solver.version, {}, {})
    for each in choices.suites:
        name = each.suite.name
        keys.suites[name] = each.suite.semantics(each.config)
        inputs = each.suite.inputs(each.config, facts(f"suite.{name}"))
        try:
            require_own_inputs(each.suite, inputs)
        except ValueError as error:
            raise ConfigError(f"suite.{name}: {error}") from error
        if each.part.sha256 is not None:
            inputs = {**inputs, "code": each.part.sha256}
        place = devices if each.suite.timing else {}
        add(name, each.suite.version, keys.suites[name], inputs, place)
    return keys


def baseline_key(model: Model, device: str) -> str:
    """The key of what is computed from the full-precision model of a cell alone."""
    semantic = {key: value for key, value in model.semantics().items() if key not in NAMES}
    return digest({"baseline": semantic, "model": model.fingerprint, "device": device})


def _solves_on_kernel(choices: Choices) -> bool:
    return choices.solving is not None and choices.solving.solver.uses_kernel


def _semantics(choices: Choices, model: Model) -> dict[str, Any]:
    """The part of the configuration that determines the weights under test."""
    scheme, calib = choices.scheme, choices.calibration
    semantic: dict[str, Any] = {
        "model": model.semantics(),
        "method": _method(choices),
        "scheme": _scheme_of(scheme, choices.quantizes),
        "calib": None if calib is None else calibration_settings(calib),
        "seed": choices.seed,
    }
    if choices.transforms:
        semantic["transform"] = [  # their order matters
            transform_description(each.transform, each.options) for each in choices.transforms
        ]
    if model.checkpoint is not None:
        semantic["method"] = {"name": LOADED}
        semantic["checkpoint"] = model.checkpoint.semantics()
    return semantic


def _scheme_of(scheme: AskedScheme | None, quantizes: bool) -> dict[str, Any]:
    """The scheme of a cell, or how one is chosen, under the fields of one scheme."""
    if scheme is None:
        return dict(NO_SCHEME)
    if not isinstance(scheme, Allocation):
        return _scheme(scheme, quantizes)
    base = _scheme(scheme.candidates[0].beside(scheme.outside), quantizes)
    return {
        **base,
        "bits": scheme.bits,
        "group_size": None,
        "auto": {
            "candidates": [each.name for each in scheme.candidates],
            "sensitivity": scheme.sensitivity,
            **({"tokens": scheme.tokens} if scheme.sensitivity == KLD else {}),
            **({"fused": True} if scheme.fused else {}),
            "version": VERSION,
        },
    }


def _scheme(scheme: AnyScheme, quantizes: bool) -> dict[str, Any]:
    """The fields of a scheme; levels by the name that a configuration uses.

    quantizes  whether the cell quantizes head and embeddings itself, so that their method matters.
    """
    if isinstance(scheme, Budget):
        return {"kind": BUDGET, "bits": scheme.bits, "group_size": None}
    found = {field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)}
    # No key for what is not quantized: older records have none.
    found = {name: value for name, value in found.items() if name not in (*OUTSIDE, "layers")}
    if scheme.layers:
        found["layers"] = {pattern: each.name for pattern, each in scheme.layers}
    for what, own in scheme.outside.items():
        found[what] = {**_scheme(own, quantizes), **(method_outside() if quantizes else {})}
    return {**found, "levels": module_of(scheme.levels)}


def _method(choices: Choices) -> dict[str, Any]:
    if choices.solving is None:
        return {"name": FULL_PRECISION}
    solving = choices.solving
    return method_description(solving.solver, solving.options, solving.rules, choices.arithmetic)


def _content(semantic: dict[str, Any]) -> dict[str, Any]:
    model = {key: value for key, value in semantic["model"].items() if key not in NAMES}
    found = {**semantic, "model": model}
    if semantic["calib"] is not None:  # its text is hashed, so names do not matter
        named = ("name", "path")
        found["calib"] = {k: v for k, v in semantic["calib"].items() if k not in named}
    if "code" in semantic:
        found["code"] = sorted(semantic["code"].values())
    if "checkpoint" in found:  # without its figures, which this machine's rounding affects
        said = found["checkpoint"].items()
        found["checkpoint"] = {key: value for key, value in said if key != "evidence"}
    return found


def _unnamed(suite: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """The configuration of a suite without the names of files whose contents are in `inputs`."""
    hashed = {label.partition(" ")[2] for label in inputs}
    found = dict(suite)
    for key in ("paths", "files"):
        if isinstance(suite.get(key), dict):
            found[key] = {
                name: None if name in hashed else file for name, file in suite[key].items()
            }
    return found


def _calibration_inputs(choices: Choices, model: Model) -> dict[str, str]:
    """Hashes of the calibration text and of its chat template; empty if nothing reads it."""
    calib = choices.calibration
    if calib is None:
        return {}
    protocol = protocols.find(calib.protocol, protocols.CALIBRATION)
    found = {"calibration": protocol_hash(protocol, calib.path, choices.data)}
    if calib.chat_template and model.folder is not None:
        found["calibration chat template"] = chat.template_hash(model.folder)
    return found
