"""The other producers of tools/peers: each is a method, and a missing environment is said."""

import re
from pathlib import Path

import pytest

from harness.cell.cells import ResolvedCell
from harness.cell.resolve import resolve
from harness.config.compose import compose_cells
from harness.errors import ConfigError

PEERS = Path(__file__).parents[2] / "tools" / "peers"
METHODS = sorted(file.stem for file in (PEERS / "method").glob("*.yaml"))
WITHOUT_TEXT = ("hqq_library", "torchao")
# Schemes of which a producer has no uniform one.
OWN = {"hqq_library": "hqq4g64"}


def resolved(*overrides: str) -> list[ResolvedCell]:
    cells = compose_cells(["model=embedded", "calib=embedded", *overrides], extra=PEERS)
    found = [resolve(cell.config, PEERS) for cell in cells]
    assert all(isinstance(cell, ResolvedCell) for cell in found)
    return found  # type: ignore[return-value]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that has an interpreter by name; nothing is run here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    monkeypatch.setenv("BITSWEEP_PEERS", str(tmp_path))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("environment")
def test_every_producer_is_a_method(method: str) -> None:
    scheme = OWN.get(method, "w4g64")
    (cell,) = resolved(f"method={method}", f"scheme={scheme}", "suite=[perplexity]")
    assert cell.identity.label
    assert (cell.choices.calibration is None) == (method in WITHOUT_TEXT)
    assert cell.arithmetic is None
    assert list(cell.keys.stages) == ["quantization", "perplexity"]


@pytest.mark.usefixtures("environment")
def test_the_experiment_has_every_producer_beside_ours() -> None:
    cells = resolved("experiment=peers", "suite.perplexity.protocols=[embedded]")
    named = [(c.identity.label, c.identity.options, c.identity.scheme) for c in cells]
    assert len(set(named)) == len(named) == 23
    labels = {label for label, _, _ in named}
    assert labels == {
        "full prec.", "RTN", "GPTQ", "llm-compressor", "GPTQModel", "AutoRound", "torchao",
        "HQQ's library",
    }  # fmt: skip
    assert len({cell.keys.cell for cell in cells}) == 23
    assert {scheme for label, _, scheme in named if label == "HQQ's library"} == {
        "hqq4g64",
        "hqq3g64",
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["method=hqq_library"], "for w4g64: its zero-points have fractions; use scheme=hqq4g64"),
        (["method=torchao", "scheme=hqq4g64"], "for hqq4g64: its levels are uniform"),
        (
            ["method=torchao", "method.grids=hqq_scale_only"],
            "cannot be asked for w4g64: method.grids=hqq_scale_only has no zero-points",
        ),
        (["method=torchao", "method.grids=best"], "grids='best' is unknown"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_a_scheme_that_a_program_does_not_have_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(*(["scheme=w4g64"] if "scheme=hqq4g64" not in words else []), *words)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_without_the_environment_the_plan_says_how_to_make_it(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BITSWEEP_PEERS", raising=False)
    with pytest.raises(ConfigError, match=r"BITSWEEP_PEERS names no environment.*README\.md"):
        resolved(f"method={method}", "scheme=w4g64")


def test_the_readme_names_every_method_and_the_pinned_versions() -> None:
    page = (PEERS / "README.md").read_text()
    assert [name for name in METHODS if f"`{name}`" not in page] == []
    pins = dict(
        line.split("#")[0].strip().split("==")
        for line in (PEERS / "requirements.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for name, package in (
        ("llm-compressor", "llmcompressor"),
        ("GPTQModel", "gptqmodel"),
        ("AutoRound", "auto-round"),
        ("HQQ", "hqq"),
        ("torchao", "torchao"),
    ):
        assert set(re.findall(rf"\| {name} (\S+) \|", page)) == {pins[package]}
