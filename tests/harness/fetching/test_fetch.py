"""Fetching from a hub on the loopback interface: files are verified, locked and read offline."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from harness.cell.cells import ResolvedCell
from harness.config.schema import Cell
from harness.data import hub, lock
from harness.data.hub import DATASET, Wanted
from harness.data.lock import Locked, LockedFile, LockError
from harness.data.texts import HUB_TEXTS
from harness.errors import BitsweepError, ModelError
from harness.fetching.offers import FetchError, find_offer
from harness.fetching.verb import FAILED, OK, fetch
from harness.run.launch import resolve_all
from tests.harness.fetching.conftest import MODEL, TEXT, WIKITEXT, Make, fill, overrides, parquet
from tests.harness.file_hub import FileHub, serving_files
from tests.quant.checkpoint.gguf_files import llama, write

WEIGHTS = "model.safetensors"


def locked(cells: list[Cell]) -> dict[str, Any]:
    """Entries of the lock file by repository."""
    file = Path(cells[0].config.paths.results) / lock.NAME
    return {each["repository"]: each for each in json.loads(file.read_text())["entries"]}


def bodies(server: FileHub) -> list[str]:
    """Requests for the contents of files."""
    return [each for each in server.asked if each.startswith("GET") and "/resolve/" in each]


def test_what_a_plan_needs_is_brought_verified_and_locked(
    server: FileHub, needing: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = needing()
    assert fetch(cells) == OK
    found = locked(cells)
    files = server.commits[MODEL][server.heads[MODEL]]
    assert found["some/tiny"]["revision"] == server.heads[MODEL]
    assert found["some/tiny"]["files"] == [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(files.items())
    ]
    (text,) = found[TEXT.dataset]["files"]
    assert (
        text["sha256"]
        == hashlib.sha256(server.commits[WIKITEXT][TEXT.revision][TEXT.file]).hexdigest()
    )
    said = capsys.readouterr()
    assert "verified: model some/tiny, commit" in said.out
    assert "locked in" in said.out
    assert said.err == ""
    before = (Path(cells[0].config.paths.results) / lock.NAME).read_bytes()
    server.asked.clear()
    assert fetch(cells) == OK
    assert bodies(server) == [], "nothing is downloaded twice"
    assert (Path(cells[0].config.paths.results) / lock.NAME).read_bytes() == before


def test_runs_read_the_lock_and_ask_nobody(server: FileHub, needing: Make) -> None:
    cells = needing()
    assert fetch(cells) == OK
    commit = server.heads[MODEL]
    files = server.commits[MODEL][commit]
    server.push(MODEL, {**files, "config.json": b"{}"})  # the branch moves on
    server.asked.clear()
    (cell,) = resolve_all(cells)
    assert server.asked == []
    assert isinstance(cell, ResolvedCell)
    assert cell.model.folder is not None
    assert cell.model.folder.name == commit
    assert cell.model.semantics()["revision"] == commit, "the record tells the commit"


@pytest.mark.parametrize("update", [False, True])
def test_a_branch_that_moved_is_followed_only_where_asked(
    server: FileHub, needing: Make, update: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = needing()
    assert fetch(cells) == OK
    first = server.heads[MODEL]
    files = server.commits[MODEL][first]
    second = server.push(MODEL, {**files, "README.md": b"new", "generation_config.json": b"{}\n"})
    assert fetch(cells, update=update) == OK
    assert locked(cells)["some/tiny"]["revision"] == (second if update else first)
    moved = f"moved: model some/tiny from commit {first[:12]} to {second[:12]}"
    assert (moved in capsys.readouterr().out) is update


def test_a_commit_that_is_gone_is_said_with_the_way_out(
    server: FileHub, needing: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cells = needing()
    assert fetch(cells) == OK
    first = server.heads[MODEL]
    files = server.commits[MODEL][first]
    server.push(MODEL, {**files, "generation_config.json": b"{}\n"}, forget=True)
    assert fetch(cells) == FAILED
    said = capsys.readouterr().err
    assert (
        f"the hub has no more the commit {first} that the lock names; `bitsweep fetch --update"
        in said
    )
    assert fetch(cells, update=True) == OK


def test_another_file_at_the_locked_commit_is_refused(
    server: FileHub, needing: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = needing()
    assert fetch(cells) == OK
    files = server.commits[MODEL][server.heads[MODEL]]
    files[WEIGHTS] = files[WEIGHTS][:-1] + b"\x00"
    assert fetch(cells) == FAILED
    said = capsys.readouterr().err
    assert f"{WEIGHTS} of the model some/tiny is another file than the lock says (sha256" in said
    assert "--update" in said


def test_a_damaged_download_is_refused_and_not_kept(
    server: FileHub, needing: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cells = needing()
    server.damaged = {WEIGHTS, "config.json"}  # a sha256, and the id of a git blob
    assert fetch(cells) == FAILED
    said = capsys.readouterr().err
    assert "config.json of the model some/tiny is not what the hub says" in said
    assert said.count("\n") == 1, "one sentence"
    assert "some/tiny" not in locked(cells)
    assert TEXT.dataset in locked(cells), "the rest came"
    server.damaged = {WEIGHTS}
    assert fetch(cells) == FAILED
    assert f"{WEIGHTS} of the model some/tiny is not what the hub says" in capsys.readouterr().err
    assert not list((tmp_path / "hub").rglob("*part"))
    server.damaged = set()
    assert fetch(cells) == OK


def test_an_interrupted_download_goes_on_where_it_was(
    server: FileHub,
    needing: Make,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over processes too: the part is on the disk. The client itself removes it (2.4)."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # 10 MB, of which a part is lost
    cells = needing()
    server.cut = {WEIGHTS: 100_000}
    assert fetch(cells) == FAILED
    said = capsys.readouterr().err
    assert "gave no answer (HTTP status 503); try again: what came is kept" in said
    (part,) = (tmp_path / "hub").rglob("*part")
    have = part.stat().st_size
    assert 0 < have <= 100_000
    server.cut = {}
    server.asked.clear()
    assert fetch(cells) == OK
    (weights,) = (each for each in bodies(server) if WEIGHTS in each)
    assert weights.endswith(f"bytes={have}-"), "the rest alone is asked for"
    resolve_all(cells)


def test_a_disk_that_is_too_small_is_refused_before_the_first_download(
    server: FileHub, needing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(FetchError, match=r"more and its disk has 1\.0 kB free: make room"):
        fetch(needing())
    assert bodies(server) == []


def test_a_gated_model_needs_a_token(
    server: FileHub, needing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gated.add(MODEL)
    cells = needing()
    with pytest.raises(ModelError, match=r"its owner grants access; ask for it on the hub and log"):
        fetch(cells)
    assert bodies(server) == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    assert fetch(cells) == OK


def test_a_gated_text_is_said_and_nothing_is_written(server: FileHub, needing: Make) -> None:
    server.gated.add(WIKITEXT)
    cells = needing()
    with pytest.raises(BitsweepError, match="its owner grants access"):
        fetch(cells)
    assert not (Path(cells[0].config.paths.results) / lock.NAME).exists()


def test_without_a_network_by_choice_nothing_is_tried(
    server: FileHub, needing: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE is set"):
        fetch(needing())
    assert server.asked == []


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", TEXT.file])
@pytest.mark.parametrize("fault", ["changed", "shorter", "missing"])
def test_runs_refuse_another_file_than_the_locked_one(
    server: FileHub, needing: Make, tmp_path: Path, name: str, fault: str
) -> None:
    cells = needing()
    assert fetch(cells) == OK
    (link,) = (path for path in (tmp_path / "hub").rglob(Path(name).name) if path.is_symlink())
    data = link.resolve().read_bytes()
    if fault == "missing":
        link.unlink()
    else:
        link.resolve().write_bytes(data[:-1] + b"~" * (fault == "changed"))
    with pytest.raises(LockError) as caught:
        resolve_all(cells)
    words = {
        "changed": "has another sha256 than",
        "shorter": f"has {len(data) - 1:,} bytes instead of {len(data):,}",
        "missing": "and not in the cache of the hub on this machine",
    }[fault]
    assert words in str(caught.value)
    assert "run `bitsweep fetch` with the same arguments" in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting property name"),
        ('{"version": 9, "entries": []}', "its version is 9, not 1"),
        ('{"version": 1}', "it has no 'entries'"),
    ],
)
def test_a_damaged_lock_is_refused(needing: Make, text: str, words: str) -> None:
    cells = needing()
    file = Path(cells[0].config.paths.results) / lock.NAME
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(LockError, match=words):
        resolve_all(cells)


def test_a_dataset_that_is_a_script_is_refused(
    server: FileHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
    server.push("datasets/old/thing", {"thing.py": b"import os", "README.md": b"old"})
    with pytest.raises(FetchError, match="old/thing is a script, which is not run"):
        find_offer(Wanted(DATASET, "old/thing"), None)


def test_what_a_plan_needs_is_noted_though_it_is_cached(server: FileHub, needing: Make) -> None:
    cells = needing()
    fetch(cells)
    (Path(cells[0].config.paths.results) / lock.NAME).unlink()
    resolve_all(cells)
    assert [wanted.repository for wanted in hub.needed()] == ["some/tiny", TEXT.dataset]


@pytest.mark.slow
def test_a_run_after_fetch_makes_no_request(tiny_model: Path, tmp_path: Path) -> None:
    """The command line, with the data of a task of lm-eval too."""
    card = (
        b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n"
        b"    path: data/test.parquet\n---\n"
    )
    with serving_files() as server:
        fill(server, tiny_model)
        rows = [{"text": f"Tom had {n} red apples"} for n in range(4)]
        files = {"README.md": card, "data/test.parquet": parquet(rows)}
        server.push("datasets/EleutherAI/lambada_openai", files)
        environment = {
            **os.environ,
            "HF_ENDPOINT": server.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
        }
        more = ["suite=[perplexity,zeroshot]", "suite.zeroshot.tasks=[lambada_openai]"]
        arguments = [*overrides(tmp_path / "results"), *more]

        def call(verb: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "harness", verb, *arguments]
            return subprocess.run(command, capture_output=True, text=True, env=environment)

        done = call("fetch")
        assert done.returncode == 0, done.stderr
        assert "default of the dataset EleutherAI/lambada_openai, commit" in done.stdout
        server.asked.clear()
        done = call("run")
        assert done.returncode == 0, done.stderr
        assert "lambada_openai" in done.stdout
        assert server.asked == []


def test_data_of_tasks_that_were_made_otherwise_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "one___two" / "default" / "0.0.0" / "abc"
    place.mkdir(parents=True)
    (place / "test.arrow").write_bytes(b"rows")
    name = (place / "test.arrow").relative_to(tmp_path).as_posix()
    made = LockedFile(name, 4, hashlib.sha256(b"rows").hexdigest())
    locked = Locked(Wanted(DATASET, "one/two"), "c" * 40, (), (made,))
    lock.require_made(locked, tmp_path)
    later = place.with_name("abd")
    later.mkdir()
    os.utime(later, (2e9, 2e9))
    with pytest.raises(LockError, match=r"was made again after .* of another commit: delete"):
        lock.require_made(locked, tmp_path)
    later.rmdir()
    (place / "test.arrow").write_bytes(b"rowz")
    with pytest.raises(LockError, match=r"test\.arrow, made of the dataset one/two, has another"):
        lock.require_made(locked, tmp_path)
    (place / "test.arrow").unlink()
    with pytest.raises(LockError, match=r"is in .* and not in"):
        lock.require_made(locked, tmp_path)


def test_a_gguf_file_is_made_a_folder(
    server: FileHub, needing: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "m.gguf", llama())
    cells = needing("model=local", f"model.path={file}", "model.name=mine")
    assert fetch(cells) == OK
    assert list(locked(cells)) == [TEXT.dataset], "what is here already is in no lock"
    (cell,) = resolve_all(cells)
    assert isinstance(cell, ResolvedCell)


def test_a_text_of_a_branch_is_keyed_by_the_locked_commit(server: FileHub, needing: Make) -> None:
    """Its figures are not found again after the branch moved and was fetched."""
    text = HUB_TEXTS["ptb-test"]
    name = f"datasets/{text.dataset}"
    rows = [{"sentence": f"tom had {n} red apples in a box by the road"} for n in range(99)]

    def key() -> str:
        (cell,) = resolve_all(cells)
        assert isinstance(cell, ResolvedCell)
        return cell.keys.stages["perplexity"]

    cells = needing("suite.perplexity.protocols=[ptb-new]")
    found = []
    for count in (99, 98):
        server.push(name, {text.file: parquet(rows[:count])})
        assert fetch(cells, update=True) == OK
        found.append(key())
    assert found[0] != found[1]
