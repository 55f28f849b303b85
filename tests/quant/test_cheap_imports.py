"""Specs are read to plan a sweep, which must not wait for torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("quant/solvers", "quant/transforms")
# Modules of these packages that are no specs: the work itself, imported when there is some.
HEAVY = {  # parts of solvers and transforms, without a spec of their own
    "quant.solvers.columns",
    "quant.solvers.mismatch",
    "quant.solvers.textbook",
    "quant.transforms.fold",
}
SPECS = [
    f"{package.replace('/', '.')}.{path.stem}"
    for package in PACKAGES
    for path in sorted((ROOT / package).glob("*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("module", ["quant", "quant.config", *sorted({*SPECS} - HEAVY)])
def test_a_spec_imports_nothing_heavy(module: str) -> None:
    code = f"""
import sys
import {module}
heavy = {{"torch", "transformers", "pandas", "lm_eval", "matplotlib", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
