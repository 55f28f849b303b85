"""What the shell is offered behind a TAB."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from harness import completion
from harness.config import help as options

NOTHING = Namespace(config_dir=None)


def offered(prefix: str, folder: Path | None = None) -> list[str]:
    found = completion.overrides(prefix, Namespace(config_dir=folder))
    return [word for word in found if word.startswith(prefix)]


def test_groups_come_first_then_their_options_then_keys() -> None:
    assert {f"{group.name}=" for group in options.groups()} <= set(offered(""))
    assert offered("exp") == ["experiment="]
    assert offered("experiment=") == [f"experiment={e}" for e in options.options("experiment")]
    assert offered("scheme=w4g1") == ["scheme=w4g128"]
    assert offered("runtime.th") == ["runtime.threads="]
    assert offered("runtime.stream=") == ["runtime.stream=auto"]
    assert offered("nothing=") == offered("nothing.") == []


def test_the_next_of_several_values() -> None:
    assert offered("scheme=w4,w4g1") == ["scheme=w4,w4g128"]
    assert "suite=[perplexity,latency" in offered("suite=[perplexity,lat")


def test_options_of_a_folder_of_the_users_are_among_them(tmp_path: Path) -> None:
    (tmp_path / "scheme").mkdir()
    (tmp_path / "scheme" / "mine.yaml").write_text("bits: 4\n")
    assert offered("scheme=mi", tmp_path) == ["scheme=mine"]
    assert offered("scheme=mi", tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("bitsweep ins", {"inspect"}),
        ("bitsweep plan -m scheme=w4g1", {"scheme=w4g128"}),
        ("bitsweep run --help exp", {"experiment", "experiment="}),
        ("bitsweep export a b --format gptq-", {"gptq-v1", "gptq-v2"}),
        ("bitsweep report --conf", {"--config-dir"}),
    ],
)
def test_the_program_answers_the_shell(line: str, words: set[str], tmp_path: Path) -> None:
    """As the function does that register-python-argcomplete defines in a shell."""
    answer = tmp_path / "answer"
    done = subprocess.run(
        [sys.executable, "-m", "harness"],
        env={
            **os.environ,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_SHELL": "fish",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    found = {word.partition("\t")[0].strip() for word in answer.read_text().splitlines()}
    assert found == words
