"""All that a run writes into a checkout is known to git as not to be kept."""

import subprocess
from pathlib import Path

import pytest

from harness import cli

IGNORED = Path(__file__).resolve().parents[3] / ".gitignore"


def test_all_that_a_run_writes_is_ignored_by_git(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    git("init", "--quiet")
    (tmp_path / ".gitignore").write_text(IGNORED.read_text())
    git("add", ".gitignore")
    monkeypatch.chdir(tmp_path)
    status = cli.main([
        "run", "model=local", f"model.path={tiny_model}", "model.name=tiny", "method=rtn",
        "scheme=w4", "suite=[latency_quick]", "suite.latency.prompt_tokens=4",
        "suite.latency.decode_tokens=2", "runtime.threads=1", "tracker=wandb",
    ])  # fmt: skip
    assert status == cli.OK
    left = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"cells", "artifacts", "reports", "runs", ".locks"} <= left
    for kept in ("reference", "published"):
        (tmp_path / "results" / kept).mkdir()
        (tmp_path / "results" / kept / "a.json").write_text("{}")
    found = git("status", "--porcelain", "--untracked-files=all").splitlines()
    assert found == [
        "A  .gitignore",
        "?? results/published/a.json",
        "?? results/reference/a.json",
    ]
