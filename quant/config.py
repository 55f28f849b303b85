"""QuantizationConfig: solver, scheme, transforms, kernel and arithmetic of a quantization."""

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

from quant.allocation import VERSION, Allocation, AskedScheme
from quant.arithmetic import ARITHMETIC, AUTO
from quant.budget import AnyScheme, Budget
from quant.errors import QuantizationError
from quant.head import method_outside
from quant.rules import STRICT, Rules
from quant.scheme import OUTSIDE
from quant.solvers.base import Solver, refusal
from quant.transforms.base import Transform
from quant.transforms.order import order_refusal


@dataclass(frozen=True)
class QuantizationConfig:
    """How to quantize a model: apply the transforms, then run the solver on the scheme's grids.

    scheme        that of the layers; an Allocation, which chooses one for every layer, is replaced
                  by its choice before anything is quantized (quant.allocate.run).
    options       options of the solver; None means its defaults.
    transforms    pairs of a transform and its options (None: its defaults), in the order of
                  application.
    kernel        "reference", "cpu", "cuda" or "auto". "auto" is the compiled operator of the
                  device if it is available; if not, a message is logged.
    batch_tokens  calibration tokens that run through a block at a time. It affects speed and
                  memory; results change by rounding only, and portable results not at all.
    rules         deviations from the request that the user allows (quant.rules).
    arithmetic    "portable", "fast" or "auto", which quantize_model resolves (quant.arithmetic).

    Raises QuantizationError, with a sentence that says what to change, for parts that do not fit.
    """

    solver: Solver
    scheme: AskedScheme
    options: Any = None
    transforms: tuple[tuple[Transform, Any], ...] = ()
    kernel: str = "auto"
    batch_tokens: int = 1024
    rules: Rules = STRICT
    arithmetic: str = AUTO

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise QuantizationError(
                f"solver={self.solver!r} is not a Solver; pass the SOLVER of a solver module, such "
                "as quant.solvers.gptq."
            )
        if self.solver.whole is not None:
            raise QuantizationError(
                f"solver {self.solver.name} is another program, which quantizes whole models into "
                "checkpoints: run it in a sweep, with `bitsweep run`."
            )
        if not isinstance(self.scheme, AskedScheme):
            raise QuantizationError(
                f"scheme={self.scheme!r} is not a Scheme; use quant.Scheme(bits=4, group_size=128)."
            )
        options = _options(self.solver, self.options, f"solver {self.solver.name}")
        object.__setattr__(self, "options", options)
        for each in self.scheme.every:
            reason = refusal(self.solver, options, each, self.rules)
            if reason is not None:
                raise QuantizationError(
                    f"solver {self.solver.name} cannot be asked for {each.name}: {reason}."
                )
        object.__setattr__(self, "transforms", tuple(map(_transform, self.transforms)))
        if self.transforms and isinstance(self.scheme, Budget):
            raise QuantizationError(
                f"transform {self.transforms[0][0].name} makes weights easier to round, and "
                f"{self.scheme.name} rounds to no grid: leave the transform out."
            )
        wrong = order_refusal(self.transforms)
        if wrong is not None:
            raise QuantizationError(wrong)
        shifting = [each.name for each, options in self.transforms if each.shifts(options)]
        if self.solver.needs_reference and shifting:
            raise QuantizationError(
                f"transform {shifting[0]} shifts inputs, and solver {self.solver.name} compares "
                "them with those of the full-precision model: set its shift=false, or use "
                "method=gptq."
            )
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
        """Whether the solver, a transform or the choice of schemes needs calibration data."""
        chooses = isinstance(self.scheme, Allocation)
        return self.solver.needs_calibration or bool(self.transforms) or chooses

    @property
    def layers(self) -> AnyScheme:
        """The scheme of the layers; QuantizationError if it is not chosen yet."""
        if isinstance(self.scheme, Allocation):
            raise QuantizationError(
                f"scheme {self.scheme.name} is an Allocation, whose choice comes first: quantize "
                "to the scheme of quant.allocate.run.choose, or use bitsweep.quantize for both."
            )
        return self.scheme

    @property
    def pruning(self) -> tuple[Transform, Any] | None:
        """The transform that removes parts of the model with its options, if there is one."""
        first = next(iter(self.transforms), None)
        return None if first is None or first[0].prune is None else first

    @property
    def after_pruning(self) -> tuple[tuple[Transform, Any], ...]:
        """The transforms of the model that is left, with their options."""
        return self.transforms if self.pruning is None else self.transforms[1:]

    @property
    def residual(self) -> tuple[Transform, Any] | None:
        """The transform of the residual stream with its options, if there is one."""
        first = next(iter(self.after_pruning), None)
        return None if first is None or first[0].residual is None else first

    @property
    def input_transforms(self) -> tuple[tuple[Transform, Any], ...]:
        """The changes of coordinates of the inputs of layers, with their options."""
        return tuple(each for each in self.transforms if each[0].change is not None)

    @property
    def rounding(self) -> tuple[Transform, Any] | None:
        """The transform that rounds the inputs of layers with its options, if there is one."""
        last = next(reversed(self.transforms), None)
        return None if last is None or last[0].rounding is None else last

    @property
    def sequential(self) -> bool:
        """Whether the layers of a block are solved stage by stage, in the order of execution."""
        return self.solver.sequential(self.options)

    @property
    def upper_drift(self) -> bool:
        """Whether half of the drift is enough: for the solver, and nothing changes coordinates."""
        return not self.input_transforms and self.solver.upper_drift(self.options)

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the result (names, versions, options), as JSON."""
        return {
            "solver": _identity(self.solver, self.solver.solve, self.options),
            "scheme": _scheme(self.scheme),
            "transforms": [_identity(each, each.function, opts) for each, opts in self.transforms],
            "kernel": self.kernel,
            "batch_tokens": self.batch_tokens,
            **self.rules.given(),
            "arithmetic": self.arithmetic,
        }


def _transform(given: Any) -> tuple[Transform, Any]:
    pair = given if isinstance(given, tuple) else (given,)
    if len(pair) != 2 or not isinstance(pair[0], Transform):
        raise QuantizationError(
            f"transforms contains {given!r}, which is not a pair of a Transform and its options; "
            "pass (TRANSFORM, None) with the TRANSFORM of a module such as "
            "quant.transforms.equalize."
        )
    transform, options = pair[0], _options(pair[0], pair[1], f"transform {pair[0].name}")
    try:
        transform.keeps(options)
    except ValueError as error:
        raise QuantizationError(str(error)) from error
    return transform, options


def _options(part: Solver | Transform, given: Any, owner: str) -> Any:
    """Return the options of a part, or its defaults.

    Raises QuantizationError unless they have the part's own type and can be written as JSON,
    because artifacts and the keys of interrupted runs contain them.
    """
    if given is None:
        try:
            given = part.options()
        except TypeError as error:
            raise QuantizationError(
                f"{owner} has options without a default ({error}); pass its options."
            ) from error
    if not isinstance(given, part.options):
        raise QuantizationError(
            f"{owner} takes options of type {part.options.__module__}.{part.options.__qualname__}, "
            f"not {given!r}; pass these, or None for the defaults."
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


def _scheme(scheme: AskedScheme) -> dict[str, Any]:
    """Return the fields of a scheme as JSON, with levels as their name and code hash."""
    if isinstance(scheme, Allocation):
        fields = {field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)}
        candidates = [_scheme(each) for each in scheme.candidates]
        outside = {what: _scheme(own) for what, own in scheme.outside.items()}
        left = (*OUTSIDE, *["fused"] * (not scheme.fused))  # as before there was a choice
        fields = {n: v for n, v in fields.items() if n not in left}
        return {**fields, "candidates": candidates, **outside, "version": VERSION}
    if isinstance(scheme, Budget):
        return {"budget": scheme.bits}
    found = {field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)}
    found = {n: v for n, v in found.items() if n not in (*OUTSIDE, "layers")}
    for what, own in scheme.outside.items():
        found[what] = {**_scheme(own), **method_outside()}
    if scheme.layers:
        found["layers"] = {pattern: _scheme(each) for pattern, each in scheme.layers}
    return {**found, "levels": scheme.kind.name, "levels code": _foreign_code(scheme.kind.find)}


def _foreign_code(function: Callable[..., Any]) -> str | None:
    """Return the sha256 of the file of an external part; None for a built-in one (code_hash)."""
    plain = inspect.unwrap(function)
    name = getattr(plain, "__module__", "") or type(plain).__module__
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None or name.partition(".")[0] == __name__.partition(".")[0]:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
