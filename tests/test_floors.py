"""The floors: harness knows quant, quant knows cuda_ext, and no arrow points upward."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "cuda_ext": {"torch"},
    "quant": {"torch", "transformers", "safetensors", "cuda_ext"},
}
MODULES = [
    path.relative_to(ROOT) for floor in ALLOWED for path in sorted((ROOT / floor).rglob("*.py"))
]


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module imports, wherever in the file it does so."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or "").split(".")[0] if node.level == 0 else "")
    return packages - {""}


def test_the_parser_sees_every_kind_of_import() -> None:
    source = "import a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    import h as i\n"
    assert imported_packages(source) == {"a", "c", "h"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_arrows_point_downward_only(module: Path) -> None:
    floor = module.parts[0]
    imported = imported_packages((ROOT / module).read_text())
    foreign = imported - ALLOWED[floor] - {floor} - set(sys.stdlib_module_names)
    assert not foreign, f"{module} may import {sorted(ALLOWED[floor])} and imports {foreign}"


# numpy, filelock, tqdm and the like are not hidden: transformers itself cannot do without them.
BARE_MACHINE = """
import importlib.machinery, sys
HIDDEN = {
    "accelerate", "antlr4", "datasets", "evaluate", "harness", "hydra", "lm_eval", "matplotlib",
    "omegaconf", "optimum", "pandas", "psutil", "pydantic", "rich", "scipy", "sklearn", "tabulate",
    "wandb",
}

class Hiding:
    # What is hidden is not found, as if it had never been installed.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for name in ("pandas", "harness"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is not hidden")

import torch
import quant
from quant.solvers import gptq, rtn
from architectures import random_windows, tiny_model

folder = sys.argv[1]
tokens = torch.stack(random_windows(2, seed=3))
for solver in (rtn.SOLVER, gptq.SOLVER):
    method = solver.name
    model = tiny_model("opt")
    scheme = quant.Scheme(bits=4, group_size=16)
    result = quant.quantize_model(
        model, random_windows(4), quant.QuantizationConfig(solver, scheme)
    )
    quant.save(f"{folder}/{method}", model, result.weights, method={"name": method})
    loaded = quant.load(f"{folder}/{method}", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, model(tokens).logits, rtol=1e-3, atol=1e-3
        )
found = sorted(HIDDEN & {name.split(".")[0] for name in sys.modules})
if found:
    raise SystemExit(f"imported although hidden: {found}")
print("quantized, saved and loaded")
"""


def test_quant_runs_with_torch_transformers_and_safetensors_alone(tmp_path: Path) -> None:
    paths = [str(ROOT), str(ROOT / "tests" / "quant")]
    completed = subprocess.run(
        [sys.executable, "-c", BARE_MACHINE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert "quantized, saved and loaded" in completed.stdout
