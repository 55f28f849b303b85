"""Tasks are found as lm-eval finds them, without importing it, and wrong ones are named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.data.texts import TextError
from harness.suites import zeroshot, zeroshot_data, zeroshot_scoring, zeroshot_tasks
from harness.suites.zeroshot_tasks import TaskError, normalise


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names are checked, not whether data sets are cached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def write(file: Path, *items: object) -> Path:
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


def test_a_task_is_found_by_the_name_of_its_file() -> None:
    files = zeroshot_tasks.find_tasks(["piqa", "arc_challenge", "lambada_openai"])
    assert sorted(file.name for file in files) == [
        "arc_challenge.yaml",
        "lambada_openai.yaml",
        "piqa.yaml",
    ]


def test_a_task_whose_file_has_another_name_a_tag_and_a_group_are_found() -> None:
    (other,) = zeroshot_tasks.find_tasks(["boolq"])
    assert other.parts[-2:] == ("boolq", "default.yaml")
    tagged = {file.stem for file in zeroshot_tasks.find_tasks(["ai2_arc"])}
    assert tagged == {"arc_easy", "arc_challenge"}
    group = {file.stem for file in zeroshot_tasks.find_tasks(["mmlu"])}
    assert {"_mmlu", "_mmlu_stem", "mmlu_anatomy", "mmlu_world_religions"} <= group
    assert len(group) == 62


@pytest.mark.parametrize(
    "name", ["piqa", "ai2_arc", "mmlu", "lambada", "super-glue-lm-eval-v1", "boolq"]
)
def test_lm_eval_itself_finds_the_same(name: str) -> None:
    """The folders that are found hold all that lm-eval needs: it knows the same members."""
    from lm_eval.tasks._index import TaskIndex

    files = zeroshot_tasks.find_tasks([name])
    manager = zeroshot_scoring._manager(sorted({str(file.parent) for file in files}))
    entry = manager.task_index[name]
    entries = [TaskIndex.entry_from_path(file) for file in files]
    found = {e.name for e in entries if e and isinstance(e.name, str)}  # groups give a list here
    if entry.yaml_path is None:
        assert entry.tags == found
    else:
        assert entry.yaml_path.resolve() in {file.resolve() for file in files}
        assert found <= manager.task_index.keys()


def test_an_unknown_task_names_the_closest_and_the_way_to_a_file(online: None) -> None:
    with pytest.raises(TaskError, match=r"no zero-shot task 'piqua' .*mean piqa .*files\.piqua="):
        zeroshot_tasks.check_tasks(["piqua"], {})
    with pytest.raises(TaskError, match="did you mean embedded_last_word"):
        zeroshot_tasks.check_tasks(["embeded_last_word"], {})


def test_checking_imports_neither_lm_eval_nor_torch() -> None:
    code = (
        "import sys; from harness.suites import zeroshot_tasks as z;"
        "z.find_tasks(['piqa', 'arc_easy']); z.check_tasks(['embedded_choice'], {});"
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_task_without_data_names_dataset_and_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    says = r"arc_easy \(dataset allenai/ai2_arc\) are not on .*suite\.zeroshot\.files\.arc_easy="
    with pytest.raises(TaskError, match=says):
        zeroshot_tasks.check_tasks(["arc_easy"], {})
    (tmp_path / "datasets" / "allenai___ai2_arc").mkdir(parents=True)
    zeroshot_tasks.check_tasks(["arc_easy"], {})


def test_a_file_takes_the_place_of_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", {"context": "a", "continuation": "b"})
    zeroshot_tasks.check_tasks(["piqa"], {"piqa": "mine.jsonl"}, tmp_path)
    zeroshot_tasks.check_tasks([], {"mine": "mine.jsonl"}, tmp_path)
    assert zeroshot_tasks.wanted(["piqa"], {"mine": "", "piqa": ""}) == ["piqa", "mine"]
    with pytest.raises(TextError, match="no file or folder"):
        zeroshot_tasks.check_tasks(["mine"], {"mine": "nowhere.jsonl"}, tmp_path)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["{}"], "line 1 .* an item needs {context, continuation}, {query, choices, gold}"),
        (['{"context": "a", "continuation": "b"}', "nonsense"], "line 2"),
        (['{"context": "a", "continuation": "b"}', '{"context": "a"}'], "has no 'continuation'"),
        (['{"context": "a", "continuation": " "}'], "the continuation is empty"),
        (['{"context": 3, "continuation": "b"}'], "context is 3, not a text"),
        (['{"query": "a", "choices": ["b"], "gold": 0}'], "two or more options"),
        (['{"query": "a", "choices": ["b", ""], "gold": 0}'], "must be a text that is not empty"),
        (['{"query": "a", "choices": ["b", "c"], "gold": 2}'], "gold is 2, not the number"),
        (['{"query": "a", "choices": ["b", "c"], "gold": true}'], "gold is True"),
        ([""], "has no items"),
    ],
)
def test_a_wrong_item_is_named_with_its_line(tmp_path: Path, lines: list[str], says: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(TaskError, match=says):
        zeroshot_tasks.read_local("mine", file)


def test_items_are_brought_into_lm_eval_s_form() -> None:
    def spaced(context: str, continuation: str) -> str:
        item = normalise("continuation", {"context": context, "continuation": continuation})
        assert item["context"] == context
        return str(item["continuation"])

    assert spaced("I said", "so") == " so"
    assert spaced("I said", " so") == " so"
    assert spaced("I said\n", "so") == "so"
    assert spaced("", "so") == "so"
    question = {"query": "Question: Why?\n", "choices": [" x", "y z"], "gold": 1}
    assert normalise("choice", question) == {
        "query": "Question: Why?\nAnswer:",
        "choices": ["x", "y z"],
        "gold": 1,
    }
    plain = {"query": "It was in the ", "choices": ["box", "bag"], "gold": 0}
    assert normalise("choice", plain)["query"] == "It was in the"


def test_embedded_tasks_have_items_without_a_file() -> None:
    words = zeroshot_tasks.embedded("embedded_last_word", 5)
    choices = zeroshot_tasks.embedded("embedded_choice", 5)
    assert (words.kind, choices.kind) == ("continuation", "choice")
    assert len(words.documents) == len(choices.documents) == 5
    assert all(item["continuation"].startswith(" ") for item in words.documents)
    for item in choices.documents:
        assert not any(choice[0].isspace() for choice in item["choices"])
        assert len(item["choices"]) >= 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"context": "caf\xe9", "continuation": "b"}', r"is not UTF-8 \(byte 17 is 0xe9\)"),
        (b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply for JSON"),
        (b'{"context": ' * 100_000, "it is nested too deeply for JSON"),
    ],
    ids=["latin-1", "lists", "objects"],
)
def test_lines_that_are_no_text_or_too_deep(tmp_path: Path, line: bytes, reason: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b'{"context": "a", "continuation": "b"}\n' + line + b"\n")
    with pytest.raises(TaskError, match=f"task mine: line 2 of .*mine.jsonl is wrong: .*{reason}"):
        zeroshot_tasks.read_local("mine", file)


def test_data_that_are_not_here_are_said_beforehand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One of two tasks is a remark, all of them are an error."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    zeroshot_tasks.check_tasks(["piqa", "embedded_choice"], {})
    config = zeroshot.Config(["piqa", "embedded_choice"])
    (remark,) = zeroshot.SUITE.remarks(config)
    assert remark.startswith("suite.zeroshot without task piqa: the data of task piqa")
    assert "unset HF_HUB_OFFLINE" in remark
    with pytest.raises(TaskError, match="the data of task piqa"):
        zeroshot_tasks.check_tasks(["piqa"], {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "HF_HUB_OFFLINE" not in zeroshot_data.missing("piqa", "piqa")
