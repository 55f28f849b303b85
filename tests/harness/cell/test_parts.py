"""Parts of a user: which names their options may have, and where the sentences come from."""

from pathlib import Path

import pytest

from harness.cell.parts import build_part, suites_in
from harness.errors import ConfigError
from harness.suites.base import Suite
from quant.solvers.base import Solver
from quant.transforms.base import Transform

SOLVER = """
from dataclasses import dataclass
from quant.solvers.base import Solver

@dataclass(frozen=True)
class Options:
    OPTION: float = 1.0

SOLVER = Solver(name="toy", label="Toy", solve=print, options=Options)
"""
TRANSFORM = """
from dataclasses import dataclass
from quant.transforms.base import Transform

@dataclass(frozen=True)
class Options:
    OPTION: float = 1.0

TRANSFORM = Transform(name="toy", label="toyed", change=print, options=Options)
"""
SUITE = """
from dataclasses import dataclass
from harness.report.columns import FigureColumn, SuiteTable
from harness.suites.base import Suite

@dataclass
class Config:
    OPTION: float = 1.0

TABLE = SuiteTable(columns=(FigureColumn("score", "score"),))
SUITE = Suite(name="toy", version=1, config=Config, run=print, table=TABLE)
"""
KINDS = {
    "SOLVER": (SOLVER, Solver),
    "TRANSFORM": (TRANSFORM, Transform),
    "SUITE": (SUITE, Suite),
}


@pytest.mark.parametrize(
    ("attribute", "option", "refused"),
    [
        ("SOLVER", "module", True),
        ("SOLVER", "solver", True),
        ("SOLVER", "name", True),  # of the method in a record
        ("SOLVER", "calib", True),  # beside the method in an artifact
        ("SOLVER", "transform", True),
        ("SOLVER", "version", False),
        ("TRANSFORM", "module", True),
        ("TRANSFORM", "name", True),
        ("TRANSFORM", "version", True),  # of the transform in a record
        ("TRANSFORM", "calib", False),
        ("SUITE", "module", True),
        ("SUITE", "name", False),  # the record keeps a suite's settings below its name
    ],
)
def test_an_option_that_would_overwrite_what_a_record_keeps_is_refused(
    tmp_path: Path, attribute: str, option: str, refused: bool
) -> None:
    source, kind = KINDS[attribute]
    (tmp_path / "toy.py").write_text(source.replace("OPTION", option))
    if not refused:
        _, built = build_part("the key", {"module": "toy", option: 2}, attribute, kind, tmp_path)
        assert getattr(built, option) == 2.0
        return
    with pytest.raises(ConfigError) as raised:
        build_part("the key", {"module": "toy"}, attribute, kind, tmp_path)
    said = str(raised.value)
    assert said.startswith("the key: ")
    assert f"toy.py has an option named {option}, which is a reserved key" in said
    assert said.count(". ") == 0, "one sentence"


def test_suites_of_a_folder_are_held_to_what_those_of_a_cell_are(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    file = tmp_path / "suite" / "toy.yaml"
    file.write_text("toy:\n  module: toy\n")
    with pytest.raises(ConfigError, match=r"toy.yaml: there is no module toy"):
        suites_in(tmp_path)
    (tmp_path / "toy.py").write_text(SUITE)
    assert suites_in(tmp_path)["toy"].name == "toy"
    (tmp_path / "toy.py").write_text(SUITE.replace('name="toy"', 'name="perplexity"'))
    with pytest.raises(ConfigError, match=r"toy.yaml: .*is named perplexity"):
        suites_in(tmp_path)
    assert suites_in(None) == {}
    with pytest.raises(ConfigError, match=r"--config-dir .*gone is not a folder: give one laid"):
        suites_in(tmp_path / "gone")
