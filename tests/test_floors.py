"""The floors: bitsweep knows harness, harness quant, quant cuda_ext; no arrow points upward."""

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.import_graph import module_graph

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "bitsweep": {"torch", "transformers", "quant", "harness"},
    "cuda_ext": {"torch"},
    "quant": {"torch", "transformers", "huggingface_hub", "safetensors", "gguf", "cuda_ext"},
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


def test_the_harness_does_not_know_the_face() -> None:
    for file in sorted((ROOT / "harness").rglob("*.py")):
        assert "bitsweep" not in imported_packages(file.read_text()), file


@pytest.mark.parametrize("floor", ["cuda_ext", "quant", "oracles"])
def test_what_is_below_the_harness_is_tested_without_it(floor: str) -> None:
    """So that it can be tested, and carried on, by itself; helpers of its tests alike."""
    for file in sorted((ROOT / "tests" / floor).rglob("*.py")):
        source = file.read_text()
        found = "harness" in imported_packages(source) or re.search(r"\btests\.harness\b", source)
        assert not found, f"{file.relative_to(ROOT)} imports harness"


# What decides figures, keys, refusals or tables has a test file of its name, where people look.
DECIDING = [
    "harness/cell/fits", "harness/cell/keys", "harness/cell/parts", "harness/cell/plan",
    "harness/cell/resolve", "harness/config/compose", "harness/config/kept",
    "harness/config/options", "harness/data/protocols", "harness/data/texts",
    "harness/models/folders", "harness/models/hub", "harness/models/model",
    "harness/models/streaming", "harness/paired/bootstrap", "harness/paired/comparison",
    "harness/paired/exact", "harness/paired/power", "harness/paired/rows",
    "harness/records/hashes", "harness/records/items", "harness/records/migrate",
    "harness/records/roots", "harness/records/store", "harness/records/temporary",
    "harness/report/columns", "harness/report/compare", "harness/report/differences",
    "harness/report/frame", "harness/report/rows", "harness/run/detectable",
    "harness/run/launch", "harness/run/process", "harness/run/resuming", "harness/run/signals",
    "harness/run/stage", "harness/run/sweep", "harness/suites/comparing",
    "harness/suites/scoring", "quant/arithmetic", "quant/blocks", "quant/calibrate/capture",
    "quant/calibrate/few", "quant/calibrate/layers", "quant/calibrate/rounding",
    "quant/calibrate/statistics",
    "quant/calibrate/stream", "quant/calibrate/upstream", "quant/calibrate/wide",
    "quant/checkpoint/choose", "quant/checkpoint/files",
    "quant/checkpoint/gptq_zeros", "quant/config", "quant/experts", "quant/grid", "quant/hessian",
    "quant/memory/limits", "quant/memory/plan", "quant/rules", "quant/scheme",
    "quant/solvers/columns", "quant/solvers/gptq", "quant/solvers/rtn",
    "quant/transforms/awq", "quant/transforms/equalize", "quant/transforms/repquant",
    "quant/transforms/round_inputs", "quant/transforms/smoothquant",
]  # fmt: skip


@pytest.mark.parametrize("module", DECIDING)
def test_what_decides_has_a_test_file_of_its_name(module: str) -> None:
    path = Path(module)
    assert (ROOT / path.with_suffix(".py")).is_file()
    assert (ROOT / "tests" / path.with_name(f"test_{path.name}.py")).is_file()


PACKAGES = ("bitsweep", "harness", "quant", "cuda_ext")


# Circles of which one tie is for the type checker alone: a kind of levels is told the scheme, which
# looks its kind up.
TIED_BY_TYPES = [["quant.levels.base", "quant.scheme"]]


def circles(graph: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
    """The modules of every circle: each of them reaches all others, and is reached by them."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        left, seen = list(graph[module]), set(graph[module])
        while left:
            new = set(graph[left.pop()]) - seen
            seen |= new
            left += new
        reached[module] = seen
    found = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in graph
        if module in reached[module]
    }
    return sorted(sorted(circle) for circle in found)


@pytest.mark.parametrize("types", [False, True])
def test_no_modules_import_each_other_in_a_circle(types: bool) -> None:
    """A late import, or one for types, hides a circle from Python, not from whoever changes it."""
    graph = module_graph(ROOT, PACKAGES, types)
    said = []
    for circle in circles(graph):
        if types and circle in TIED_BY_TYPES:
            continue
        ties = [
            f"  {module}, line {line}, imports {other}"
            for module in circle
            for other, line in graph[module].items()
            if other in circle
        ]
        said.append("\n".join([f"a circle of {', '.join(circle)}:", *ties]))
    assert not said, "\n".join(said)


def made(folder: Path, types: bool = False, **sources: str) -> dict[str, dict[str, int]]:
    """The graph of a package `quant` of these modules, beside an empty room."""
    for name, source in {"__init__": "", "room/__init__": "", **sources}.items():
        file = folder / "quant" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return module_graph(folder, PACKAGES, types)


@pytest.mark.parametrize(
    "source",
    [
        "import quant.two",
        "from quant.two import anything",
        "from quant import two",
        "from . import two",
        "from .two import anything",
        "def late():\n    from quant.two import anything",
        "try:\n    import quant.two\nexcept ImportError:\n    pass",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import quant.two",
    ],
)
def test_a_circle_is_found_whichever_way_it_is_tied(tmp_path: Path, source: str) -> None:
    graph = made(tmp_path, one=source, two="from quant.three import x", three="import quant.one")
    assert circles(graph) == [["quant.one", "quant.three", "quant.two"]]


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "from quant import anything",
        "import quant.one",
        "if TYPE_CHECKING:\n    from quant.two import anything",
        "if typing.TYPE_CHECKING:\n    import quant.two",
        "def __getattr__(name):\n    return importlib.import_module('quant.two')",
    ],
)
def test_what_is_no_import_at_run_time_ties_no_circle(tmp_path: Path, source: str) -> None:
    assert circles(made(tmp_path, one=source, two="import quant.one")) == []


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_a_circle_that_types_tie_is_found_where_asked(tmp_path: Path, test: str) -> None:
    source = f"if {test}:\n    from quant.two import anything"
    graph = made(tmp_path, types=True, one=source, two="import quant.one")
    assert circles(graph) == [["quant.one", "quant.two"]]


def test_two_circles_are_two(tmp_path: Path) -> None:
    pairs = {"one": "two", "two": "one", "three": "four", "four": "three", "five": "one"}
    graph = made(tmp_path, **{name: f"import quant.{other}" for name, other in pairs.items()})
    assert circles(graph) == [["quant.four", "quant.three"], ["quant.one", "quant.two"]]


def test_relative_imports_start_at_their_package(tmp_path: Path) -> None:
    graph = made(tmp_path, two="", **{"room/inner": "from ..two import x\nfrom . import other"})
    assert graph["quant.room.inner"] == {"quant.two": 1, "quant.room": 2}


# numpy, filelock, tqdm and the like are not hidden: transformers itself cannot do without them.
BARE_MACHINE = """
import importlib.machinery, sys
HIDDEN = {
    "accelerate", "antlr4", "datasets", "evaluate", "harness", "hydra", "lm_eval", "matplotlib",
    "omegaconf", "optimum", "pandas", "plotly", "psutil", "pydantic", "rich", "scipy", "sklearn",
    "tabulate", "wandb",
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
from tests.quant.architectures import random_windows, tiny_model

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
    completed = subprocess.run(
        [sys.executable, "-c", BARE_MACHINE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    assert "quantized, saved and loaded" in completed.stdout
