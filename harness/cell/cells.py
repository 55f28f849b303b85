"""Resolved cells, which can run, and pending ones, whose model is not on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from harness.cell.choices import Choices
from harness.cell.devices import Devices
from harness.cell.keys import StageKeys
from harness.cell.parts import Measuring
from harness.models.model import AbsentModel, Model, Place, StoredModel
from harness.records.record import (
    ACTIVATIONS,
    FULL_PRECISION,
    LOADED,
    QUANTIZATION,
    CellIdentity,
    Record,
)
from harness.records.store import Store
from quant.config import QuantizationConfig
from quant.head import HOW
from quant.solvers.base import words_of


@dataclass(frozen=True)
class PendingCell:
    """A cell whose model is not on this machine yet: it can be planned but not run.

    reason  why its model, its calibration text or all that it measures cannot be had; None if the
            model can be downloaded.
    """

    choices: Choices
    model: AbsentModel
    reason: str | None = None

    @property
    def identity(self) -> CellIdentity:
        return name_cell(self.choices, self.model)

    @property
    def absent(self) -> dict[str, str]:
        """The reason, by stage, if the cell cannot run."""
        return {} if self.reason is None else dict.fromkeys(self.choices.stage_names, self.reason)


@dataclass(frozen=True)
class ResolvedCell:
    """A cell that can run; complete and picklable.

    kernel    name of the kernel that it runs on; "torch" for full precision.
    devices   where its models lie.
    expected  published full-precision perplexities by protocol.
    absent    reasons, by name, of further suites whose data cannot be had.
    """

    choices: Choices
    model: Model
    kernel: str
    keys: StageKeys
    expected: Mapping[str, float]
    devices: Devices
    absent: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> CellIdentity:
        """The names of the cell in tables."""
        return name_cell(self.choices, self.model)

    @property
    def store(self) -> Store:
        return Store(self.choices.results)

    @property
    def artifact(self) -> Path | None:
        """Folder of the quantized model; None for a cell that is not quantized here."""
        key = self.keys.stages.get(QUANTIZATION)
        return None if key is None else self.store.artifact_path(self.identity, key)

    @property
    def quantized(self) -> bool:
        """Whether the model under test is quantized, here or elsewhere."""
        return self.choices.solving is not None or self.model.checkpoint is not None

    @property
    def stored_model(self) -> StoredModel:
        """The full-precision model to quantize; only for a cell that quantizes."""
        assert isinstance(self.model, StoredModel)
        return self.model

    @property
    def arithmetic(self) -> str | None:
        """The arithmetic of its calibration; None for a cell without calibration of ours."""
        return self.choices.arithmetic

    @property
    def place(self) -> Place:
        """Devices, kernel and dtype for loading the model under test."""
        runtime = self.choices.runtime
        positions = max((each.positions for each in self.choices.suites), default=0)
        # The keys contain what "auto" resolved to; another process must not resolve it differently.
        kernel = self.kernel if self.quantized else runtime.kernel
        seed, levels = self.choices.seed, self.choices.levels
        home, devices = self.devices.home, self.devices.of_model
        return Place(home, kernel, seed, positions, levels, devices)

    @property
    def baseline_place(self) -> Place:
        """The same for the full-precision model that it is compared with."""
        return replace(self.place, devices=self.devices.of_baseline)

    @property
    def quantization(self) -> QuantizationConfig:
        """How the model is quantized; only for a cell whose layers a solver of ours treats."""
        return quantization_of(self.choices, self.kernel)

    def measuring(self, stage: str) -> Measuring:
        """The suite of a stage."""
        return next(each for each in self.choices.suites if each.suite.name == stage)

    def find(self, stage: str) -> Record | None:
        """The record of a stage, ok or failed; None if there is none."""
        return self.store.find(self.identity, self.keys.cell, stage, self.keys.stages[stage])


def quantization_of(choices: Choices, kernel: str) -> QuantizationConfig:
    """How layers are quantized with these choices; QuantizationError for parts that do not fit."""
    solving, scheme = choices.solving, choices.scheme
    assert solving is not None
    assert scheme is not None
    return QuantizationConfig(
        solver=solving.solver,
        scheme=scheme,
        options=solving.options,
        transforms=tuple((t.transform, t.options) for t in choices.transforms),
        kernel=kernel,
        rules=solving.rules,
        arithmetic=solving.arithmetic,
    )


def name_cell(choices: Choices, model: Model | AbsentModel) -> CellIdentity:
    """The names of a cell in tables."""
    solving = choices.solving
    if model.checkpoint is not None:
        method, label, options = LOADED, LOADED, model.checkpoint.label
    elif solving is None:
        method, label, options = FULL_PRECISION, "full prec.", ""
    else:
        method, label = solving.solver.name, solving.solver.label
        said = [*words_of(solving.solver, solving.options), *solving.said]
        said += [word for each in choices.transforms for word in each.words]
        options = ", ".join(said)
    return CellIdentity(
        model=model.name,
        method=method,
        label=label,
        options=options or None,
        scheme=_scheme(choices, model),
        calibration=None if choices.calibration is None else choices.calibration.name,
        seed=choices.seed,
        head=_outside("head", choices, model),
        embeddings=_outside("embeddings", choices, model),
    )


def _scheme(choices: Choices, model: Model | AbsentModel) -> str:
    """The scheme of the weights and the grid of simulated activations: w4g64, w4g64-a8."""
    weights = "w16" if choices.scheme is None else choices.scheme.name
    return ACTIVATIONS.join(filter(None, (weights, activations_of(choices, model))))


def activations_of(choices: Choices, model: Model | AbsentModel) -> str:
    """The grid of activations that the cell simulates: a8; "" if none."""
    if model.checkpoint is not None:
        return model.checkpoint.activations
    return "".join(each.activations for each in choices.transforms)


def _outside(what: str, choices: Choices, model: Model | AbsentModel) -> str | None:
    """How head or embeddings were quantized, for records and tables; None if they are not."""
    scheme = None if choices.scheme is None else choices.scheme.outside.get(what)
    if scheme is None:
        return None
    how = HOW if choices.quantizes else "random codes"
    return f"{scheme.name}, {how if model.checkpoint is None else 'as stored'}"
