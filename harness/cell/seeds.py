"""Repetitions of cells over seeds: kept where the seed draws the calibration text.

`seeds=N` (harness.config.compose) asks for every cell with N seeds. Full precision and methods
without calibration would measure the same weights N times.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.cell.parts import load_part
from harness.config.schema import Cell
from harness.errors import ConfigError
from quant.solvers.base import Solver


def without_needless(cells: Iterable[Cell]) -> list[Cell]:
    """The cells without repetitions of those that see no calibration text.

    Raises ConfigError for one whose calibration text does not follow the seed.
    """
    kept = []
    for cell in cells:
        if cell.repeats:
            if not _sees_text(cell):
                continue
            _require_own_text(cell)
        kept.append(cell)
    return kept


def _sees_text(cell: Cell) -> bool:
    """Whether the solver or a transform of the cell reads calibration text."""
    module = cell.config.method.get("solver")
    if module is None:
        return False
    _, solver = load_part("method", module, "SOLVER", Solver, cell.folder)
    return solver.needs_calibration or bool(cell.config.transform)


def _require_own_text(cell: Cell) -> None:
    config = cell.config
    if config.calib.seed != config.seed:
        raise ConfigError(
            f"seeds repeats cells with seed={config.seed}, but calib.seed={config.calib.seed} does "
            "not follow it, so all would be calibrated on the same text: leave calib.seed out, or "
            "use seeds=1."
        )
