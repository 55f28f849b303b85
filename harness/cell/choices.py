"""The parts of a cell with their options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.cell.parts import Measuring, Solving, Transforming
from harness.config.schema import RuntimeConfig, TrackerConfig
from harness.data.config import CalibConfig
from harness.records.record import QUANTIZATION
from quant.allocation import AskedScheme
from quant.parts import Part


@dataclass(frozen=True)
class Choices:
    """The parts of a cell with their options, whether or not its model is here.

    solving      None: the weights are measured as they are.
    scheme       None: full precision; an Allocation chooses a scheme for every layer.
    levels       the user's module of levels, of the scheme or the model; None for built-in ones.
    calibration  None if no solver or transform needs calibration text.
    """

    name: str
    seed: int
    solving: Solving | None
    transforms: tuple[Transforming, ...]
    scheme: AskedScheme | None
    levels: Part | None
    calibration: CalibConfig | None
    suites: tuple[Measuring, ...]
    runtime: RuntimeConfig
    tracker: TrackerConfig
    results: Path
    data: str | None

    @property
    def weight_parts(self) -> tuple[Part, ...]:
        """The modules that determine the weights under test: solver, transforms and levels."""
        solving = () if self.solving is None else (self.solving,)
        levels = () if self.levels is None else (self.levels,)
        return (*(chosen.part for chosen in (*solving, *self.transforms)), *levels)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All modules of the cell's parts."""
        return (*self.weight_parts, *(chosen.part for chosen in self.suites))

    @property
    def quantizes(self) -> bool:
        """Whether the cell has a quantization stage; random codes need none."""
        return self.solving is not None and self.solving.solver.reads_weights

    @property
    def solves(self) -> bool:
        """Whether a solver of ours treats the layers, and not another program the whole model."""
        return self.solving is not None and self.solving.solver.whole is None

    @property
    def arithmetic(self) -> str | None:
        """The arithmetic of the calibration; None if there is none, or it is another program's."""
        if self.solving is None or self.calibration is None or not self.solves:
            return None
        return self.solving.arithmetic

    @property
    def stage_names(self) -> list[str]:
        """The stages in order: the quantization, if there is one, then the suites."""
        return [QUANTIZATION] * self.quantizes + [each.suite.name for each in self.suites]
