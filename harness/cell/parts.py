"""The parts that a cell has chosen: a module each, with the options that it was given."""

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

MODULE = "module"  # the key of a configuration that names the module of a part
ARITHMETIC_KEY = "arithmetic"  # of a method, beside the options of its solver
# Keys that stand beside the options of a part, in configurations (the first ones), in records and
# in artifacts: an option of that name would overwrite them, or be overwritten.
RESERVED: Mapping[type, frozenset[str]] = {
    Solver: frozenset({MODULE, "solver", ARITHMETIC_KEY, "name", "calib", "transform", *RULES}),
    Transform: frozenset({MODULE, "solver", "name", "version"}),
    Suite: frozenset({MODULE, "solver"}),
}

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class Solving:
    """A solver, its options, and what it is allowed to do otherwise.

    arithmetic  what it is solved in: as it was asked for, and what that stands for once the model
                is known (quant.arithmetic).
    said        for tables: an arithmetic that is not the one that the rule would take.
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
    """A transform and its options."""

    part: Part
    options: Any

    @property
    def transform(self) -> Transform:
        return self.part.load("TRANSFORM", Transform)

    @property
    def words(self) -> list[str]:
        """How tables name it: its label and the options that are not the usual ones."""
        return [self.transform.label, *words_of(self.transform, self.options)]


@dataclass(frozen=True)
class Measuring:
    """A suite and its configuration."""

    part: Part
    config: Any

    @property
    def suite(self) -> Suite:
        return self.part.load("SUITE", Suite)

    @property
    def positions(self) -> int:
        """Tokens that it puts into the KV cache."""
        return self.suite.positions(self.config)


def suites_in(folder: Path | None) -> dict[str, Suite]:
    """The suites that a user's folder, laid out like conf/, names in its YAML files, by name."""
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
    """The part that a configuration names under `module`, and its options from the other keys.

    key     of the configuration that chooses the part, for messages.
    others  the overrides that choose parts which have an option, by its name.

    Raises ConfigError for a module that is not there or has no such spec, and for options that the
    spec does not have or that it refuses.
    """
    module = given[MODULE]
    loaded = load_part(key, module, attribute, kind, folder)
    part, spec = loaded[0], cast(Any, loaded[1])
    named = {name: value for name, value in given.items() if name != MODULE}
    options: type = spec.config if isinstance(spec, Suite) else spec.options
    known = {field.name for field in dataclasses.fields(options)}
    if taken := known & RESERVED[kind]:
        raise ConfigError(
            f"{key}: {part.where} has an option called {min(taken)}, a key that configurations and "
            "records keep beside the options: call it otherwise."
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
    """The part in a module and its spec.

    ConfigError, which begins with `where`, for one that cannot be had or has a name of ours.
    """
    try:
        part = find_part(str(module), user_folders(folder))
        spec = part.load(attribute, kind)
    except PartError as error:
        raise ConfigError(f"{where}: {error}") from error
    _require_own_name(where, part, cast(Any, spec).name, kind.__module__.rpartition(".")[0])
    return part, spec


def _require_own_name(where: str, part: Part, name: str, package: str) -> None:
    """Refuse a part of somebody else under a name of ours: its figures would stand as ours."""
    if part.sha256 is None:
        return
    ours = importlib.util.find_spec(f"{package}.{name}") is not None
    if ours or name in (FULL_PRECISION, LOADED, QUANTIZATION):
        raise ConfigError(
            f"{where}: {part.where} calls itself {name}, which is the name of a part of Bitsweep: "
            "call it otherwise, because records and tables are kept under that name."
        )
