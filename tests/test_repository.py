"""What surrounds the code: hooks that need no activated venv, containers, forms, one version."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
CONTAINERS = sorted(ROOT.glob("Containerfile*"))
SCRIPTS = Path(sys.executable).parent


@pytest.mark.parametrize("hook", [hook for each in HOOKS for hook in each["hooks"]], ids=str)
def test_hooks_call_the_tools_of_the_venv_by_their_path(hook: dict[str, str]) -> None:
    assert hook["entry"].startswith(".venv/bin/"), "PATH does not have it in a plain shell"
    assert hook["language"] == "system", "nothing is fetched from the network"
    assert (SCRIPTS / hook["entry"].split()[0].removeprefix(".venv/bin/")).exists()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a checkout of git is needed")
@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="make install is needed")
def test_hooks_run_in_a_plain_shell(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GIT_CONFIG_COUNT": "1"}
    environment |= {"GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    done = subprocess.run(
        [ROOT / ".venv/bin/pre-commit", "run", "ruff-check", "--files", "tools/dist.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a container file, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_containers_are_pinned_without_rights_and_of_the_wheel(path: Path) -> None:
    found = instructions(path)
    pins = dict(text.split("=") for word, text in found if word == "ARG" and "=" in text)
    images = [text.split()[0] for word, text in found if word == "FROM"]
    assert len(images) == 2, "what compiles stays behind"
    for image in images:
        named = re.sub(r"\$\{(\w+)\}", lambda match: pins[match[1]], image)
        assert re.fullmatch(r"docker\.io/[\w/]+:\d+\.\d+\.\d+-[\w.-]+", named), named
    users = [text for word, text in found if word == "USER"]
    assert users == ["1000"], "the number, which every engine can compare with 0"
    copied = [text for word, text in found if word == "COPY" and "--from" not in text]
    assert copied == ["constraints.txt dist/bitsweep-*.whl ./"], "the checkout is not in the image"
    assert ("ENTRYPOINT", '["bitsweep"]') in found


def test_a_build_of_a_container_sees_the_wheel_alone() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    assert kept == ["*", "!dist/bitsweep-*.whl", "!constraints.txt"]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([SCRIPTS / "hadolint", path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout


SCHEMAS = {
    "CITATION.cff": "citation-file-format",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/figure.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/part.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
}


@pytest.mark.parametrize("file", SCHEMAS)
def test_files_that_others_read_fit_their_schema(file: str) -> None:
    done = subprocess.run(
        [SCRIPTS / "check-jsonschema", "--builtin-schema", f"vendor.{SCHEMAS[file]}", ROOT / file],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_no_form_or_workflow_is_left_out_of_that() -> None:
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml")}
    assert there <= set(SCHEMAS)


def test_the_workflow_runs_the_projects_own_scripts_and_every_python_that_is_supported() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert runs == ["bash .ci/run", 'bash .ci/long "$BEFORE"']
    versions = workflow["jobs"]["checks"]["strategy"]["matrix"]["python"]
    supported = re.search(
        r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    assert supported is not None
    assert versions == [f"3.{minor}" for minor in range(int(supported[1]), int(supported[2]))]
