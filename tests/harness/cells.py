"""From a configuration to a cell that can run, for the tests of this room."""

from pathlib import Path

from harness.cell.cells import ResolvedCell
from harness.cell.plan import CellPlan, plan_cell
from harness.cell.resolve import resolve
from harness.config.schema import CellConfig, ModelConfig


def cell_of(config: CellConfig) -> ResolvedCell:
    """The resolved cell of a configuration whose model is here."""
    cell = resolve(config)
    assert isinstance(cell, ResolvedCell)
    return cell


def plan_of(config: CellConfig) -> CellPlan:
    """What is done of it."""
    return plan_cell(cell_of(config))


def local(path: Path | None) -> ModelConfig:
    """The configuration of a model in a folder."""
    return ModelConfig(name="x", source="local", path=None if path is None else str(path))
