"""The lists of harness.extras against what the code imports and what pyproject.toml installs."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from harness import extras
from harness.cell.resolve import resolve
from harness.config.compose import compose_cells
from harness.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
OWN = {"bitsweep", "harness", "quant", "cuda_ext"}
# The base, and what transformers cannot do without.
BASE = {"torch", "transformers", "safetensors", "huggingface_hub", "tokenizers", "tqdm"}


def imported() -> set[str]:
    """Top-level modules that harness and bitsweep import from elsewhere, wherever in a file."""
    found = set()
    for package in ("harness", "bitsweep"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    found.add(str(node.module).partition(".")[0])
    return found - OWN - set(sys.stdlib_module_names)


def test_the_lists_are_what_the_code_imports() -> None:
    used = ("harness", "wandb", "slurm", "ray")
    known = {"argcomplete", *(module for extra in used for module in extras.EXTRAS[extra])}
    assert imported() - BASE == known


@pytest.mark.parametrize("extra", ["harness", "wandb"])
def test_every_module_is_of_a_package_that_the_extra_installs(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {
        each.partition(">=")[0].lower().replace("_", "-")
        for each in project["optional-dependencies"][extra]
    }
    packages = packages_distributions()
    for module in extras.EXTRAS[extra]:
        names = {name.lower().replace("_", "-") for name in packages[module]}
        assert names & required, f"{module} is of {names}"


def test_every_extra_of_users_says_what_it_brings() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.EXTRAS) == set(extras.ABOUT) == {*project["optional-dependencies"]} - {"dev"}


def test_what_is_missing_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "ray", ("json", "no_such_module", "no_such.part"))
    assert extras.missing("ray") == ["no_such_module", "no_such.part"]
    with pytest.raises(extras.MissingExtra) as caught:
        extras.require("ray", "hydra/launcher=ray")
    assert str(caught.value) == (
        "hydra/launcher=ray needs packages that are not installed (no_such_module, no_such.part): "
        'pip install "bitsweep[ray]".'
    )
    monkeypatch.setitem(extras.EXTRAS, "ray", ("json",))
    extras.require("ray", "hydra/launcher=ray")


def test_without_wandb_a_cell_that_is_to_be_tracked_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["method=none", "scheme=w16", "suite=perplexity_quick"]
    (tracked,) = compose_cells([*words, "tracker=wandb"])
    (usual,) = compose_cells(words)
    resolve(tracked.config)
    monkeypatch.setitem(extras.EXTRAS, "wandb", ("no_such_module",))
    with pytest.raises(ConfigError) as caught:
        resolve(tracked.config)
    assert str(caught.value) == (
        "tracker=wandb needs a package that is not installed: "
        'pip install "bitsweep[wandb]", or use tracker=none.'
    )
    resolve(usual.config)
