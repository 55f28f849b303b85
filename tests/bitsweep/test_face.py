"""What `import bitsweep` offers, what it costs, and what it says where an extra is missing."""

import ast
import inspect
import json
import os
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import bitsweep

ROOT = Path(__file__).resolve().parents[2]
PROMISED = {
    "Scheme", "quantize", "load", "export", "inspect", "run", "load_records", "build_report",
    "Record", "BitsweepError", "QuantizationError", "__version__",
}  # fmt: skip


def python(code: str, *arguments: str, folder: Path | None = None) -> str:
    """What a fresh interpreter prints; its error stream is in the failure."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=folder or ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_importing_it_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import bitsweep; bitsweep.__version__;"
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = set(ast.literal_eval(python(code))) - {"bitsweep"}
    assert loaded <= set(sys.stdlib_module_names)


def test_every_name_is_there_and_documented() -> None:
    assert set(bitsweep.__all__) >= PROMISED
    assert dir(bitsweep) == sorted(bitsweep.__all__)
    for name in bitsweep.__all__:
        found = getattr(bitsweep, name)
        assert name == "__version__" or inspect.getdoc(found), name
    with pytest.raises(AttributeError, match="quantise"):
        bitsweep.quantise  # noqa: B018


def test_checkers_of_types_see_the_same_names_as_python() -> None:
    """Lazy names are for Python alone; what a type checker reads must be no other list."""
    tree = ast.parse((ROOT / "bitsweep" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes: dict[str, str | None] = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            homes |= {str(alias.asname): node.module for alias in node.names}
    assert homes == bitsweep._HOME
    assert {*homes, "__version__"} == set(bitsweep.__all__)


def test_the_packages_say_that_they_are_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["bitsweep", "harness", "quant", "cuda_ext"]
    assert all((ROOT / package / "py.typed").is_file() for package in packages)


def test_the_base_needs_three_packages_and_nothing_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = [each.partition(">=")[0] for each in project["dependencies"]]
    assert base == ["torch", "transformers", "safetensors"]
    extras = project["optional-dependencies"]
    assert set(extras) == {"harness", "gguf", "wandb", "slurm", "ray", "dev"}
    for each in [*project["dependencies"], *chain.from_iterable(extras.values())]:
        assert "==" not in each.partition(";")[0]  # behind it stands where it is wanted
        assert ">=" in each or each.startswith("bitsweep["), each


# The base install: what extras bring is not found, as if it had never been installed; filelock and
# yaml come with transformers too.
BARE = """
import json, os, subprocess, sys
from pathlib import Path
from harness.extras import EXTRAS
HIDDEN = {name.partition(".")[0] for names in EXTRAS.values() for name in names}
HIDDEN -= {"filelock", "numpy", "yaml"}  # transformers needs them

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
import bitsweep
from bitsweep.__main__ import main
said = {}
"""


@pytest.fixture(scope="module")
def without_extras(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one bare process says and makes; it imports torch and transformers for seconds."""
    code = f"""{BARE}
import contextlib, io
def error_of(act):
    try:
        act()
    except bitsweep.BitsweepError as error:
        return str(error)
said["api"] = error_of(lambda: bitsweep.run(["experiment=quickstart"]))
said["records"] = error_of(lambda: bitsweep.load_records("results"))
said["name"] = error_of(lambda: bitsweep.quantize("opt-125m", "w4", method="rtn"))
for words in (["run"], ["plan", "scheme=w4"], ["report"], ["run", "--help"], ["doctor"]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    said[" ".join(words)] = [status, out.getvalue(), err.getvalue()]

import torch
model, out = Path(sys.argv[1]), Path(sys.argv[2])
windows = list(torch.arange(4 * 32).reshape(4, 32) % 90)
result = bitsweep.quantize(model, bitsweep.Scheme(4, 16), windows, out=out / "w4")
loaded = bitsweep.load(out / "w4")
assert loaded(windows[0][None]).logits.isfinite().all()
bitsweep.export(out / "w4", out / "v1", "gptq-v1")
assert main(["export", str(out / "w4"), str(out / "ct"), "--format", "compressed-tensors"]) == 0
assert main(["inspect", str(out / "v1")]) == 0
found = [bitsweep.inspect(out / name) for name in ("w4", "v1", "ct")]
found = [[each.format, each.layers, each.scheme.name, each.verified] for each in found]
assert not HIDDEN & {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps({{"said": said, "found": found}}))
"""
    place, out = (tmp_path_factory.mktemp(name) for name in ("empty", "made"))
    printed = python(code, str(model_folder), str(out), folder=place)
    assert not list(place.iterdir())
    return json.loads(printed.splitlines()[-1])


def test_without_extras_models_are_quantized_loaded_exported_and_inspected(
    without_extras: dict[str, Any],
) -> None:
    assert without_extras["found"] == [
        ["GPTQ v2", 12, "w4g16", True],
        ["GPTQ v1", 12, "w4g16", True],
        ["compressed-tensors", 12, "w4g16_fp32", True],
    ]


def test_without_extras_the_harness_says_the_pip_command(without_extras: dict[str, Any]) -> None:
    said = without_extras["said"]
    for name in ("api", "records", "name"):
        assert said[name].endswith(': pip install "bitsweep[harness]".')
        assert "\n" not in said[name]
    assert said["api"].startswith("bitsweep.run needs packages that are not installed (accelerate,")
    assert said["name"].startswith("bitsweep.quantize('opt-125m', ...), which is no folder here,")
    for verb in ("run", "plan scheme=w4", "report"):
        status, out, err = said[verb]
        assert (status, out) == (2, "")
        assert err.startswith(f"bitsweep: bitsweep {verb.partition(' ')[0]} needs packages")
        assert err.endswith('pip install "bitsweep[harness]".\n')
        assert err.count("\n") == 1
    assert said["run --help"][0] == 0
    assert "quickstart" in said["run --help"][1]
    status, out, _ = said["doctor"]
    assert status == 1
    (missing,) = [line for line in out.splitlines() if line.startswith("MISSING")]
    assert 'pip install "bitsweep[harness]"' in missing
