"""The chosen parts of a cell, each a module with its options."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from harness.config.help import user_folders
from harness.config.options import build_options
from harness.config.own import read_mapping
from harness.errors import ConfigError
from harness.records.record import FULL_PRECISION, LOADED, QUANTIZATION
from harness.suites.base import Suite
from quant.arithmetic import AUTO
from quant.parts import Part, PartError, find_part
from quant.rules import RULES, STRICT, Rules
from quant.solvers.base import Solver, words_of
from quant.transforms.base import Transform

MODULE = "module"  # configuration key with the module of a part
ARITHMETIC_KEY = "arithmetic"  # key of a method beside its solver's options
# Keys beside the options of a part in configurations (listed first), records and artifacts. An
# option of the same name would overwrite them, or be overwritten.
RESERVED: Mapping[type, frozenset[str]] = {
    Solver: frozenset({MODULE, "solver", ARITHMETIC_KEY, "name", "calib", "transform", *RULES}),
    Transform: frozenset({MODULE, "solver", "name", "version"}),
    Suite: frozenset({MODULE, "solver"}),
}

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class Solving:
    """A solver with its options and allowed fallbacks.

    arithmetic  as configured; once the model is known, what "auto" resolved to (quant.arithmetic).
    said        words for tables if the arithmetic is not the one that the rule would choose.
    """

    part: Part
    options: Any
    rules: Rules = STRICT
    arithmetic: str = AUTO
    said: tuple[str, ...] = ()

    @property
    def solver(self) -> Solver:
        return self.part.load("SOLVER", Solver)


@dataclass(frozen=True)
class Transforming:
    """A transform with its options."""

    part: Part
    options: Any

    @property
    def transform(self) -> Transform:
        return self.part.load("TRANSFORM", Transform)

    @property
    def words(self) -> list[str]:
        """Its name in tables: the label and the options that differ from the defaults."""
        return [self.transform.label, *words_of(self.transform, self.options)]

    @property
    def activations(self) -> str:
        """The grid to which it rounds inputs, as the name of a scheme has it: a8; "" if to none."""
        return self.transform.tag(self.options) if self.transform.rounds else ""


@dataclass(frozen=True)
class Measuring:
    """A suite with its configuration."""

    part: Part
    config: Any

    @property
    def suite(self) -> Suite:
        return self.part.load("SUITE", Suite)

    @property
    def positions(self) -> int:
        """Tokens that the suite puts into the KV cache."""
        return self.suite.positions(self.config)


def suites_in(folder: Path | None) -> dict[str, Suite]:
    """The suites, by name, in the YAML files of a user's folder, which is laid out like conf/."""
    found: dict[str, Suite] = {}
    for root in user_folders(folder):
        for file in sorted(root.glob("suite/**/*.yaml")):
            for name, given in read_mapping(file).items():
                if isinstance(given, dict) and MODULE in given:
                    _, found[name] = load_part(str(file), given[MODULE], "SUITE", Suite, folder)
    return found


def build_part(
    key: str,
    given: Mapping[str, Any],
    attribute: str,
    kind: type[Spec],
    folder: Path | None,
    others: Callable[[str], Sequence[str]] = lambda _: (),
) -> tuple[Part, Any]:
    """Load the part that a configuration names under `module`; return it with its options.

    key     the configuration key that chooses the part, for messages.
    others  maps the name of an option to the overrides that choose a part which has it.

    Raises ConfigError for a missing module or spec, and for unknown or invalid options.
    """
    module = given[MODULE]
    loaded = load_part(key, module, attribute, kind, folder)
    part, spec = loaded[0], cast(Any, loaded[1])
    named = {name: value for name, value in given.items() if name != MODULE}
    options: type = spec.config if isinstance(spec, Suite) else spec.options
    known = {field.name for field in dataclasses.fields(options)}
    if taken := known & RESERVED[kind]:
        raise ConfigError(
            f"{key}: {part.where} has an option named {min(taken)}, which is a reserved key of "
            "configurations and records: rename the option."
        )
    unknown = [name for name in named if name not in known]
    elsewhere = others(unknown[0]) if unknown else ()
    built = build_options(options, named, key, str(module), elsewhere)
    if not isinstance(spec, Suite):
        try:
            words_of(spec, built)
        except Exception as error:
            raise ConfigError(f"{key}: {part.where} cannot name its options ({error}).") from error
    return part, built


def load_part(
    where: str, module: Any, attribute: str, kind: type[Spec], folder: Path | None
) -> tuple[Part, Spec]:
    """Load a part and its spec from a module.

    Raises ConfigError, beginning with `where`, if the module cannot be loaded or the part has the
    name of a built-in one.
    """
    try:
        part = find_part(str(module), user_folders(folder))
        spec = part.load(attribute, kind)
    except PartError as error:
        raise ConfigError(f"{where}: {error}") from error
    _require_own_name(where, part, cast(Any, spec).name, kind.__module__.rpartition(".")[0])
    return part, spec


def _require_own_name(where: str, part: Part, name: str, package: str) -> None:
    """Refuse a user's part with the name of a built-in one: tables could not tell them apart."""
    if part.sha256 is None:
        return
    ours = importlib.util.find_spec(f"{package}.{name}") is not None
    if ours or name in (FULL_PRECISION, LOADED, QUANTIZATION):
        raise ConfigError(
            f"{where}: {part.where} is named {name}, which is the name of a part of Bitsweep: "
            "rename it, because records and tables are kept under that name."
        )
