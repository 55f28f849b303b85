"""What is checked in a wheel and an sdist: each kind of fault is found by name."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import dist

METADATA = "x-1.0.dist-info/METADATA"


def example(pattern: str) -> str:
    """A name that a pattern matches."""
    return pattern.replace("*", "x")


def names(kind: str) -> list[str]:
    """An archive that holds what it must, and nothing else."""
    return sorted(map(example, dist.INSIDE[kind]))


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_whole_archive_is_fine(kind: str) -> None:
    assert dist.complaints(kind, names(kind)) == []


@pytest.mark.parametrize(
    ("kind", "pattern"), [(kind, each) for kind, all_ in dist.INSIDE.items() for each in all_]
)
def test_whatever_is_missing_is_named(kind: str, pattern: str) -> None:
    left = [name for name in names(kind) if name != example(pattern)]
    assert dist.complaints(kind, left) == [f"the {kind} lacks {pattern}."]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("wheel", "tests/conftest.py"),
        ("wheel", "results/reference/quickstart/cells/a.json"),
        ("wheel", "harness/reference/a.json"),
        ("wheel", "quant/__pycache__/grid.cpython-311.pyc"),
        ("wheel", "cuda_ext/libbitsweep_kernels.so"),
        ("sdist", "results/reference/quickstart/summary.md"),
        ("sdist", "results/cells/a/b.json"),
        ("sdist", ".github/workflows/ci.yml"),
        ("sdist", ".venv/bin/python"),
        ("sdist", ".mypy_cache/3.11/a.json"),
        ("sdist", "results/.locks/a.lock"),
    ],
)
def test_whatever_must_not_be_inside_is_named(kind: str, name: str) -> None:
    said = dist.complaints(kind, [*names(kind), name])
    assert any(name in sentence for sentence in said), said


def test_a_stranger_beside_the_packages_is_named() -> None:
    said = dist.complaints("wheel", [*names("wheel"), "utils/a.py"])
    assert said == ["the wheel installs utils beside the packages."]


def test_every_file_of_the_packages_is_needed() -> None:
    needed = dist.packaged(dist.REPOSITORY)
    assert {"bitsweep/__init__.py", "harness/conf/config.yaml", "quant/grid.py"} <= set(needed)
    assert "cuda_ext/csrc/ops.cpp" in needed
    assert not any(name.endswith(".pyc") for name in needed)
    said = dist.complaints("wheel", names("wheel"), ["quant/grid.py"])
    assert said == ["the wheel lacks quant/grid.py."]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["Version: 1.0", "Requires-Dist: torch>=2.13"], []),
        (["Version: 1.1"], ["the wheel is 1.1, pyproject.toml says 1.0."]),
        (
            ["Version: 1.0", "Requires-Dist: torch==2.13.0; extra == 'a'"],
            ["the wheel needs torch==2.13.0; extra == 'a': use a lower bound."],
        ),
        (["Version: 1.0", "Requires-Dist: rich>=15; extra == 'a'"], []),
    ],
)
def test_the_description_is_held_to_pyproject(
    lines: list[str], said: list[str], tmp_path: Path
) -> None:
    wheel = tmp_path / "x-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(METADATA, "\n".join(["Metadata-Version: 2.4", "Name: x", *lines, "", ""]))
    assert dist.metadata_complaints(wheel, "1.0") == said
    assert dist.wheel_names(wheel) == [METADATA]


def test_names_in_an_sdist_are_those_below_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    path = tmp_path / "x-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "a.py", "x-1.0/quant/a.py")
    assert dist.sdist_names(path) == ["quant/a.py"]


def test_nothing_is_kept_of_a_build_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_build(root: Path, outdir: Path) -> tuple[Path, Path]:
        raise RuntimeError("the wheel of the sdist and that of the checkout differ: a.py.")

    monkeypatch.setattr(dist, "build", no_build)
    old = tmp_path / "bitsweep-0.0.1.tar.gz"
    old.write_text("")
    assert dist.main(["--outdir", str(tmp_path)]) == 1
    assert "not built: the wheel of the sdist and that of the checkout differ" in (
        capsys.readouterr().err
    )
    assert old.exists()
