"""QuantizationConfig: how to quantize a model, as one value."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.arithmetic import ARITHMETIC, AUTO
from quant.errors import QuantizationError
from quant.rules import STRICT, Rules
from quant.scheme import Scheme
from quant.solvers.base import Solver
from quant.transforms.base import Transform


@dataclass(frozen=True)
class QuantizationConfig:
    """How to quantize a model: transforms, then the solver, on the grids of the scheme.

    options       of the solver; None: its defaults.
    transforms    with their options (None: the defaults), in the order in which they are applied.
    kernel        what carries out the work: "reference", "cpu", "cuda" or "auto" (the operator of
                  the device where it can be had, with a line in the log where it cannot).
    batch_tokens  calibration tokens that run through a block at a time; a matter of speed and
                  memory (results change only by rounding, portable ones not at all).
    rules         what it may do otherwise than asked.
    arithmetic    "portable", "fast" or "auto", which quantize_model resolves (quant.arithmetic).

    Raises QuantizationError, one sentence with the way out, for parts that do not fit together.
    """

    solver: Solver
    scheme: Scheme
    options: Any = None
    transforms: tuple[tuple[Transform, Any], ...] = ()
    kernel: str = "auto"
    batch_tokens: int = 2048
    rules: Rules = STRICT
    arithmetic: str = AUTO

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise QuantizationError(
                f"solver={self.solver!r} is no Solver; give SOLVER of a solver's module, such as "
                "quant.solvers.gptq."
            )
        if not isinstance(self.scheme, Scheme):
            raise QuantizationError(
                f"scheme={self.scheme!r} is no Scheme; use quant.Scheme(bits=4, group_size=128)."
            )
        options = _options(self.solver, self.options, f"solver {self.solver.name}")
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "transforms", tuple(map(_transform, self.transforms)))
        if self.batch_tokens < 1:
            raise QuantizationError(
                f"batch_tokens={self.batch_tokens} is not a number of tokens; use 1 or more."
            )
        if self.arithmetic not in ARITHMETIC:
            raise QuantizationError(
                f"arithmetic={self.arithmetic!r} is unknown; choose one of {', '.join(ARITHMETIC)}."
            )

    @property
    def needs_calibration(self) -> bool:
        """Whether calibration data must run through the blocks."""
        return self.solver.needs_calibration or bool(self.transforms)

    @property
    def sequential(self) -> bool:
        """Whether the layers of a block are done stage by stage, in the order of execution."""
        return self.solver.sequential(self.options)

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON: names, versions, options."""
        return {
            "solver": _identity(self.solver, self.solver.solve, self.options),
            "scheme": _scheme(self.scheme),
            "transforms": [_identity(each, each.change, opts) for each, opts in self.transforms],
            "kernel": self.kernel,
            "batch_tokens": self.batch_tokens,
            **self.rules.given(),
            "arithmetic": self.arithmetic,
        }


def _transform(given: Any) -> tuple[Transform, Any]:
    pair = given if isinstance(given, tuple) else (given,)
    if len(pair) != 2 or not isinstance(pair[0], Transform):
        raise QuantizationError(
            f"transforms holds {given!r}, which is no pair of a Transform and its options; give "
            "(TRANSFORM, None) of a transform's module, such as quant.transforms.equalize."
        )
    transform, options = pair[0], _options(pair[0], pair[1], f"transform {pair[0].name}")
    try:
        transform.keeps(options)
    except ValueError as error:
        raise QuantizationError(str(error)) from error
    return transform, options


def _options(part: Solver | Transform, given: Any, owner: str) -> Any:
    """The options of a part, or its defaults; QuantizationError unless they are its own, in JSON.

    JSON, because artifacts and the keys of interrupted runs name them.
    """
    if given is None:
        try:
            given = part.options()
        except TypeError as error:
            raise QuantizationError(
                f"{owner} has options without a default ({error}); give its options."
            ) from error
    if not isinstance(given, part.options):
        raise QuantizationError(
            f"{owner} takes options of type {part.options.__module__}.{part.options.__qualname__}, "
            f"not {given!r}; give these, or None for the defaults."
        )
    try:
        json.dumps(_plain(given))
    except TypeError as error:
        raise QuantizationError(
            f"{owner}: its options cannot be written as JSON ({error}); use numbers, strings, "
            "booleans and tuples of them."
        ) from error
    return given


def _plain(options: Any) -> dict[str, Any]:
    return dataclasses.asdict(options)


def _identity(
    part: Solver | Transform, function: Callable[..., Any], options: Any
) -> dict[str, Any]:
    return {
        "name": part.name,
        "version": part.version,
        "options": _plain(options),
        "code": _foreign_code(function),
    }


def _scheme(scheme: Scheme) -> dict[str, Any]:
    """The fields of a scheme; levels may be an object, and of somebody else."""
    found = {field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)}
    return {**found, "levels": scheme.kind.name, "levels code": _foreign_code(scheme.kind.find)}


def _foreign_code(function: Callable[..., Any]) -> str | None:
    """sha256 of the file that a part from elsewhere lies in; None for ours (see code_hash)."""
    plain = inspect.unwrap(function)
    name = getattr(plain, "__module__", "") or type(plain).__module__
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None or name.partition(".")[0] == __name__.partition(".")[0]:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
