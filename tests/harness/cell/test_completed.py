"""What suites take from their model's configuration and from each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cell.cells import ResolvedCell
from harness.cell.resolve import resolve
from harness.config.compose import compose_cells
from harness.errors import ConfigError


def cell(*overrides: str) -> ResolvedCell:
    (composed,) = compose_cells(["method=none", "scheme=w16", *overrides])
    found = resolve(composed.config)
    assert isinstance(found, ResolvedCell)
    return found


def config(name: str, *overrides: str) -> Any:
    return cell(*overrides).measuring(name).config


@pytest.fixture
def task(tmp_path: Path) -> str:
    file = tmp_path / "task.jsonl"
    file.write_text(json.dumps({"context": "a", "continuation": "b"}))
    return str(file)


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("once upon a time<|endoftext|>the end of it")
    return str(file)


def test_own_task_files_replace_the_tasks_of_the_model(task: str) -> None:
    default = ["embedded_last_word", "embedded_choice"]
    assert config("zeroshot", "suite=[zeroshot]").tasks == default
    mine = f"suite.zeroshot.files.mine={task}"
    assert config("zeroshot", "suite=[zeroshot]", mine).tasks == []
    both = config("zeroshot", "suite=[zeroshot]", mine, "suite.zeroshot.tasks=[embedded_choice]")
    assert both.tasks == ["embedded_choice"]
    one = cell("suite=[zeroshot]").keys
    same = cell("suite=[zeroshot]", f"suite.zeroshot.tasks=[{','.join(default)}]").keys
    assert one.stages == same.stages
    with pytest.raises(ConfigError, match="tasks is empty"):
        cell("suite=[zeroshot]", "suite.zeroshot.tasks=[]")


def test_divergence_has_the_texts_of_perplexity_or_its_own(text: str) -> None:
    both = ("suite=[perplexity,divergence]", "suite.perplexity.protocols=[documents,embedded]")
    path = f"suite.perplexity.paths.documents={text}"
    found = config("divergence", *both, path, "suite.perplexity.documents.count=1")
    assert found.protocols == ["documents", "embedded"]
    assert found.paths == {"documents": text}
    assert found.documents.count == 1
    own = ("suite.divergence.protocols=[embedded]",)
    assert config("divergence", *both, path, *own).paths == {}
    name, folder = Path(text).name, Path(text).parent
    file = (f"suite.divergence.paths.documents={name}", f"paths.data={folder}")
    assert config("divergence", *both, path, *file).paths == {"documents": name}
    assert config("divergence", "suite=[divergence]").protocols == ["embedded"]
    spelled = ("suite=[divergence]", "suite.divergence.protocols=[documents,embedded]")
    alone = cell(*spelled, f"suite.divergence.paths.documents={text}").keys.stages["divergence"]
    assert cell(*both, path).keys.stages["divergence"] == alone
