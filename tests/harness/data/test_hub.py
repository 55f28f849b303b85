"""What is not cached is asked of the hub once a plan, and refused by name, before anything runs."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from harness.config.schema import CellConfig, ModelConfig
from harness.data import hub
from harness.data.texts import HUB_TEXTS
from harness.errors import BitsweepError, ConfigError, ModelError
from harness.models.model import AbsentModel, find_model
from harness.suites import zeroshot, zeroshot_tasks
from tests.harness.hub_server import Hub, serving

Make = Callable[..., CellConfig]
ROOT = Path(__file__).resolve().parents[3]
WIKITEXT = HUB_TEXTS["wikitext2-test"]


def be_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What HF_ENDPOINT does when the client is imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty cache, and a hub of our own that may be asked."""
    with serving() as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        be_hub(monkeypatch, server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        hub.forget()
        yield server
        hub.forget()


def test_a_text_is_asked_for_once_and_its_size_is_said(online: Hub) -> None:
    from harness.data import texts

    online.repositories[f"datasets/{WIKITEXT.dataset}"] = {WIKITEXT.file: 732_610}
    for _ in range(3):
        texts.check_hub("wikitext2-test", "suite.perplexity.paths.wikitext2")
    assert len(online.asked) == 1
    (line,) = hub.said()
    assert line.startswith(f"to be downloaded: {WIKITEXT.file} of the dataset {WIKITEXT.dataset}")
    assert line.endswith(", 732.6 kB")
    hub.forget()
    texts.check_hub("wikitext2-test", "suite.perplexity.paths.wikitext2")
    assert len(online.asked) == 2, "another plan asks again"


@pytest.mark.parametrize(
    ("repositories", "gated", "words"),
    [
        ({}, False, f"has no dataset {WIKITEXT.dataset}, or hides it from you; correct the name"),
        ({WIKITEXT.file: 1}, True, "its owner grants access; ask for it on the hub and log in"),
        ({"other": 1}, False, "has no such file; name a local copy"),
    ],
)
def test_a_text_that_the_hub_does_not_give_is_refused(
    online: Hub, tiny_cell: Make, repositories: dict[str, int], gated: bool, words: str
) -> None:
    from harness.cell.resolve import resolve

    name = f"datasets/{WIKITEXT.dataset}"
    if repositories:
        online.repositories[name] = repositories
    if gated:
        online.gated.add(name)
    config = tiny_cell(latency=False)
    config.suite["perplexity"] |= {"protocols": ["wikitext2"], "paths": {}}
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    assert words in str(caught.value)
    assert "suite.perplexity.paths.wikitext2=<file or folder>" in str(caught.value)


def test_a_task_that_the_hub_does_not_give_fails_alone(online: Hub) -> None:
    (file,) = zeroshot_tasks.find_tasks(["piqa"])
    dataset = zeroshot_tasks._config(file)["dataset_path"]
    config = zeroshot.Config(["piqa", "embedded_choice"])
    (remark,) = zeroshot.SUITE.remarks(config)
    assert f"without task piqa: the data of task piqa (dataset {dataset})" in remark
    assert "hides it from you; correct the name" in remark
    with pytest.raises(zeroshot_tasks.TaskError, match="the data of task piqa"):
        zeroshot_tasks.check_tasks(["piqa"], {})
    assert len(online.asked) == 1
    online.repositories[f"datasets/{dataset}"] = {}
    hub.forget()
    assert zeroshot.SUITE.remarks(config) == []
    assert hub.said() == [f"to be downloaded: dataset {dataset}"]
    online.gated.add(f"datasets/{dataset}")
    hub.forget()
    (remark,) = zeroshot.SUITE.remarks(config)
    assert "because its owner grants access; ask for it on the hub and log in" in remark


@pytest.mark.parametrize("gated", [False, True])
def test_a_data_set_that_is_a_script_is_refused_by_the_plan(online: Hub, gated: bool) -> None:
    """StoryCloze: its owner sends the documents to those who ask."""
    (file,) = zeroshot_tasks.find_tasks(["storycloze_2018"])
    dataset = zeroshot_tasks._config(file)["dataset_path"]
    online.repositories[f"datasets/{dataset}"] = {"README.md": 9, "story_cloze.py": 9}
    if gated:
        online.gated.add(f"datasets/{dataset}")
    with pytest.raises(zeroshot_tasks.TaskError) as caught:
        zeroshot_tasks.check_tasks(["storycloze_2018"], {})
    assert "is a script, which is not run; get its documents where their owner" in str(caught.value)
    assert "suite.zeroshot.files.storycloze_2018=<file>" in str(caught.value)
    config = zeroshot.Config(["storycloze_2018", "embedded_choice"])
    (remark,) = zeroshot.SUITE.remarks(config)
    assert remark.startswith("suite.zeroshot without task storycloze_2018: ")


@pytest.mark.parametrize(
    ("id", "revision", "words"),
    [
        ("some/model", None, None),
        ("some/model", "v2", "the model some/model has no revision v2; name a branch, a tag"),
        ("some/gated", None, "its owner grants access; ask for it on the hub and log in"),
        ("nobody/nothing", None, "has no model nobody/nothing, or hides it from you"),
        ("a/b/c", None, "a/b/c is not the name of a repository"),
    ],
)
def test_a_model_is_asked_for_before_it_is_fetched(
    online: Hub, id: str, revision: str | None, words: str | None
) -> None:
    files = {"config.json": 9, "model.safetensors": 374_998_696, "pytorch_model.bin": 3}
    online.repositories |= {"models/some/model": files, "models/some/gated": files}
    online.gated.add("models/some/gated")
    config = ModelConfig(name="m", source="hub", id=id, revision=revision)
    if words is None:
        assert find_model(config) == AbsentModel(config)
        assert hub.said() == ["to be downloaded: model some/model, 375.00 MB"]
        return
    for _ in range(2):
        with pytest.raises(ModelError, match=r"^model\.id=") as caught:
            find_model(config)
        assert words in str(caught.value)
    assert len(online.asked) <= 3, "the snapshot of the cache, the model, the permission"
    assert hub.said() == []


def test_shards_are_added_up(online: Hub) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": 10**9 for i in (1, 2)}
    files = {"model.safetensors.index.json": 5, **shards, "consolidated.safetensors": 3}
    online.repositories["models/some/model"] = files
    assert hub.ask(hub.Wanted(hub.MODEL, "some/model")).bytes == 2 * 10**9


@pytest.mark.parametrize("broken", [True, False])
def test_a_hub_that_does_not_answer_is_a_sentence_and_is_not_asked_again(
    online: Hub, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    from harness.data import texts

    online.broken = broken
    if not broken:
        be_hub(monkeypatch, "http://127.0.0.1:9")
    for name in ("wikitext2-test", "ptb-test", "c4-validation"):
        texts.check_hub(name, "suite.perplexity.paths.x")
    *downloads, silent = hub.said()
    assert len(downloads) == 3
    why = "gave no answer (HTTP status 503)" if broken else "could not be reached (ConnectError)"
    assert why in silent
    assert "so the download may fail: give local files" in silent
    assert len(online.asked) == int(broken)


def test_bitsweep_plan_asks_once_for_all_cells(tmp_path: Path) -> None:
    """The command line, in a process that finds the hub by HF_ENDPOINT."""
    import os

    with serving() as server:
        server.repositories[f"datasets/{WIKITEXT.dataset}"] = {WIKITEXT.file: 732_610}
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        arguments = [
            *("plan", "-m", "model=embedded", "scheme=w8,w4,w3", "method=rtn"),
            *("suite=[perplexity]", "suite.perplexity.protocols=[wikitext2]"),
            f"paths.results={tmp_path / 'results'}",
        ]
        command = [sys.executable, "-m", "harness", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "3 cells" in done.stdout
        assert done.stdout.count("to be downloaded") == 1
        assert len(server.asked) == 1
        server.repositories.clear()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"has no dataset {WIKITEXT.dataset}" in done.stderr


def test_offline_nothing_is_asked(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data import texts

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BitsweepError, match="HF_HUB_OFFLINE is set"):
        texts.check_hub("wikitext2-test", "suite.perplexity.paths.wikitext2")
    config = ModelConfig(name="m", source="hub", id="some/model")
    assert find_model(config) == AbsentModel(config)
    assert online.asked == []
