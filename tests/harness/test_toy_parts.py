"""A method and a suite of a user's folder, added as the README says: one file and its YAML each.

They run through the command line to the table. What is incomplete is refused in one sentence that
names the missing part, before anything is loaded.
"""

from pathlib import Path

import pytest

SOLVER = '''
"""Halve: every weight is rounded to the nearest level after it was halved."""

from __future__ import annotations

from dataclasses import dataclass

from quant.solvers.base import Solution, Solver


@dataclass(frozen=True)
class Options:
    """factor: what weights are multiplied with before they are rounded."""

    factor: float = 0.5

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"factor={self.factor} leaves no weight; use a number above 0.")


def solve(weight, scheme, prepared, options, layer):
    from quant.solvers.rtn import SOLVER as RTN

    return RTN.solve(weight * options.factor, scheme, None, RTN.options(), layer)


def describe(options):
    return [f"factor {options.factor:g}"]


SOLVER = Solver(name="halve", label="Halved", solve=solve, options=Options, describe=describe)
'''

SUITE = '''
"""Counts the parameters of the model under test that are zero."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records.record import Metric
from harness.report.columns import Column, SuiteTable
from harness.suites.base import Suite, SuiteResult


@dataclass
class Config:
    """scale: the figure is multiplied with it."""

    scale: float = 1.0


def run(context, config):
    total = sum(1 for _ in context.model.parameters())
    value = config.scale * total
    metric = Metric(name="tensors", task="model", value=value, unit="tensors", n=1, n_unit="models")
    return SuiteResult([metric])


SUITE = Suite(name="toy", version=1, config=Config, run=run, table=TABLE)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, laid out like conf/, with the two modules beside the YAML."""
    root = tmp_path / "mine"
    (root / "method").mkdir(parents=True)
    (root / "suite").mkdir()
    (root / "halve.py").write_text(SOLVER)
    (root / "method" / "halve.yaml").write_text("# Halved.\nsolver: halve\nfactor: 0.5\n")
    (root / "toy.py").write_text(SUITE)
    (root / "suite" / "toy.yaml").write_text("# A toy.\ntoy:\n  module: toy\n  scale: 1.0\n")
    return root
