"""Cutting a release: one version in three files, written together or not at all."""

import subprocess
from pathlib import Path

import pytest

from tools import release

CHANGELOG = """# Changelog

## [Unreleased]

### Added
- A thing.

## [0.1.0] - 2026-01-31

### Added
- Everything.
"""
PYPROJECT = '[project]\nname = "x"\nversion = "0.1.0"\n\n[tool.other]\npython_version = "3.11"\n'
CITATION = "cff-version: 1.2.0\ntitle: X\nversion: 0.1.0\ndate-released: 2026-01-31\nlicense: MIT\n"


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a release behind it, all of it committed."""
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "CITATION.cff").write_text(CITATION)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "all")
    return tmp_path


def texts(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text() for name in release.FILES}


def test_a_cut_changes_three_files_and_leaves_the_rest_to_whoever_cuts(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = release.cut(root, "0.2.0rc1", "2026-11-29")
    assert made["CHANGELOG.md"] == CHANGELOG.replace(
        "## [Unreleased]\n", "## [Unreleased]\n\n## [0.2.0rc1] - 2026-11-29\n"
    )
    assert made["pyproject.toml"] == PYPROJECT.replace('"0.1.0"', '"0.2.0rc1"')
    assert "version: 0.2.0rc1\ndate-released: 2026-11-29\nlicense" in made["CITATION.cff"]
    assert made["CITATION.cff"].count("date-released") == 1
    assert texts(root)["CHANGELOG.md"] == CHANGELOG, "nothing is written yet"

    assert release.main(["0.2.0"], root) == 0
    said = capsys.readouterr().out
    assert "Nothing is committed" in said
    assert "git tag -a v0.2.0" in said
    first, second, third = release.sections(texts(root)["CHANGELOG.md"])
    assert (first.name, first.body) == ("Unreleased", "")
    assert (second.name, second.body) == ("0.2.0", "### Added\n- A thing.")
    assert third.name == "0.1.0"
    assert release.ready(root) == "0.2.0"
    log = subprocess.run(["git", "tag"], cwd=root, capture_output=True, text=True, check=True)
    assert log.stdout == ""


def test_a_second_cut_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["0.2.0"], root) == 0
    before = texts(root)
    assert release.main(["0.2.0"], root) == 1
    assert "0.2.0 is in CHANGELOG.md already" in capsys.readouterr().err
    assert texts(root) == before


def test_the_first_release_may_have_the_version_that_is_there(root: Path) -> None:
    first = CHANGELOG.partition("\n## [0.1.0]")[0]
    (root / "CHANGELOG.md").write_text(first)
    (root / "CITATION.cff").write_text(CITATION.replace("date-released: 2026-01-31\n", ""))
    made = release.cut(root, "0.1.0", "2026-11-29")
    assert made["pyproject.toml"] == PYPROJECT
    assert "## [0.1.0] - 2026-11-29" in made["CHANGELOG.md"]
    assert made["CITATION.cff"] == CITATION.replace("2026-01-31", "2026-11-29")


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("0.1.0", "0.1.0 is in CHANGELOG.md already"),
        ("0.0.9", "0.0.9 is before 0.1.0"),
        ("two", "two is not a version"),
        ("v0.2.0", "write 0.2.0"),
        ("0.02.0", "write 0.2.0"),
        ("Unreleased", "is in CHANGELOG.md already"),
    ],
)
def test_versions_that_cannot_be_are_refused(
    root: Path, version: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = texts(root)
    assert release.main([version], root) == 1
    assert sentence in capsys.readouterr().err
    assert texts(root) == before


def test_a_tag_and_uncommitted_files_are_in_the_way(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(root, "tag", "v0.2.0")
    assert release.main(["0.2.0"], root) == 1
    assert "the tag v0.2.0 exists already" in capsys.readouterr().err
    (root / "more.py").write_text("")
    assert release.main(["0.3.0"], root) == 1
    assert "1 files are not committed (?? more.py)" in capsys.readouterr().err
    assert texts(root)["CHANGELOG.md"] == CHANGELOG


@pytest.mark.parametrize(
    ("name", "old", "new", "sentence"),
    [
        ("CHANGELOG.md", "### Added\n- A thing.\n", "", "nothing under"),
        ("CHANGELOG.md", "## [Unreleased]\n", "", "does not begin with"),
        ("CHANGELOG.md", " - 2026-01-31", "", "a version without a date"),
        ("CHANGELOG.md", "## [0.1.0] - 2026-01-31", "## 0.1.0", "not the heading of a version"),
        ("CHANGELOG.md", "[0.1.0]", "[0.1.1]", "the newest of CHANGELOG.md is 0.1.1"),
        ("pyproject.toml", '"0.1.0"', '"0.1.2"', "pyproject.toml has version 0.1.2"),
        ("CITATION.cff", "version: 0.1.0", "version: 0.1.1", "does not say 'version: 0.1.0'"),
        ("pyproject.toml", "python_version", "version", "2 lines begin with"),
    ],
)
def test_files_that_disagree_are_named(
    root: Path, name: str, old: str, new: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / name).write_text((root / name).read_text().replace(old, new, 1))
    before = texts(root)
    assert release.main(["0.2.0"], root) == 1
    assert sentence in capsys.readouterr().err
    assert texts(root) == before


def test_this_repository_could_be_built_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["--check"]) == 0
    assert release.current_version(release.REPOSITORY) in capsys.readouterr().out
