"""`bitsweep push` against a hub on the loopback interface."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants, parse_eval_result_entries

import quant
from harness import cli
from harness.records.record import CellIdentity, Metric, Record
from harness.records.store import artifact_digest
from quant.checkpoint.folder import sha256
from quant.scheme import Scheme
from tests.harness.data.test_hub import be_hub
from tests.harness.push_hub import TOKEN, PushHub, taking_commits
from tests.quant.tiny_checkpoints import METHOD, quantized

NAME = "me/tiny-w4g8"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, weights = quantized("llama", Scheme(4, group_size=8, symmetric=True), False)
    place = tmp_path_factory.mktemp("made") / "results" / "artifacts" / "tiny-gptq-w4g8"
    place.parent.mkdir(parents=True)
    return Path(quant.save(place, model, weights, method=METHOD))


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "results" / "artifacts" / made.name))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PushHub]:
    with taking_commits() as hub:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True
        )  # its store speaks to no loopback
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        be_hub(monkeypatch, hub.endpoint)
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_artifact_and_its_card_arrive_whole(artifact, hub, capsys) -> None:
    assert cli.main(["push", str(artifact), NAME, "--private"]) == cli.OK
    there = dict(hub.repositories[NAME])
    del there[".gitattributes"]
    assert there == contents(artifact)
    assert there["README.md"].startswith(b"---\n")
    assert hub.put == [sha256(artifact / "model.safetensors")]
    (request,) = hub.made
    assert request.get("private", request.get("visibility") == "private")
    said = capsys.readouterr().out
    assert f"{len(there)} files, {sum(map(len, there.values())):,} bytes: {hub.endpoint}/" in said


def test_what_was_measured_goes_with_it(artifact, hub) -> None:
    notes = {"text": f"Salesforce/wikitext@{'a' * 40} wikitext-2-raw-v1/test.parquet"}
    figure = Metric(
        name="perplexity",
        task="wikitext2",
        value=6.5,
        unit="ppl",
        n=9,
        n_unit="tokens",
        notes=notes,
    )
    cell = CellIdentity(model="tiny", method="gptq", scheme="w4g8", calibration=None, seed=0)
    for number, digest in enumerate((artifact_digest(artifact), "of another")):
        record = Record(
            key=f"{number}" * 64,
            cell_key=f"{number}" * 64,
            suite="perplexity",
            status="ok",
            cell=cell,
            metrics=[figure.model_copy(update={"value": 6.5 + number})],
            config={},
            inputs={"artifact": digest},
            started_at="2026-11-21T10:00:00+00:00",
            seconds=1.0,
        )
        place = artifact.parents[1] / "cells" / f"{number}"
        place.mkdir(parents=True)
        (place / "perplexity.json").write_text(record.model_dump_json())
    assert cli.main(["push", str(artifact), NAME]) == cli.OK
    sent = yaml.safe_load(hub.repositories[NAME][".eval_results/bitsweep.yaml"])
    (entry,) = parse_eval_result_entries(sent)
    assert (entry.dataset_id, entry.value) == ("Salesforce/wikitext", 6.5)


def test_pushing_it_again_sends_no_weights_and_changes_the_card(artifact, hub) -> None:
    assert cli.main(["push", str(artifact), NAME]) == cli.OK
    card = artifact / "README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    assert cli.main(["push", str(artifact), NAME]) == cli.OK
    assert len(hub.put) == 1
    assert hub.repositories[NAME]["README.md"].endswith(b"Mine.\n")


def test_other_content_is_kept_unless_it_may_be_overwritten(artifact, hub, capsys) -> None:
    theirs = {".gitattributes": b"", "README.md": b"Theirs.", "pytorch_model.bin": b"theirs"}
    hub.repositories[NAME] = dict(theirs)
    assert cli.main(["push", str(artifact), NAME]) == cli.IMPOSSIBLE
    said = capsys.readouterr().err
    assert f"{NAME} holds something else (pytorch_model.bin): choose another name" in said
    assert hub.repositories[NAME] == theirs
    assert hub.put == []
    assert cli.main(["push", str(artifact), NAME, "--overwrite"]) == cli.OK
    assert set(hub.repositories[NAME]) == {".gitattributes", *contents(artifact)}


def test_another_artifact_is_other_content(artifact, hub, capsys) -> None:
    hub.repositories[NAME] = {**contents(artifact), "artifact.json": b"{}"}
    assert cli.main(["push", str(artifact), NAME]) == cli.IMPOSSIBLE
    assert "holds something else" in capsys.readouterr().err


def test_a_repository_made_by_hand_is_no_other_content(artifact, hub) -> None:
    hub.repositories[NAME] = {".gitattributes": b"", "README.md": b"---\nlicense: mit\n---\n"}
    assert cli.main(["push", str(artifact), NAME]) == cli.OK
    assert "model.safetensors" in hub.repositories[NAME]
    assert hub.made == []


@pytest.mark.parametrize("at", ["commit", "weights"])
def test_an_upload_that_breaks_off_leaves_the_repository_and_goes_on(
    artifact, hub, capsys, at
) -> None:
    weights = sha256(artifact / "model.safetensors")
    hub.broken.add("commit" if at == "commit" else weights)
    assert cli.main(["push", str(artifact), NAME]) == cli.FAILED
    said = capsys.readouterr().err
    assert f"the upload to {NAME} broke off (" in said
    assert "run the same command again" in said
    assert set(hub.repositories[NAME]) == {".gitattributes"}
    hub.broken.clear()
    assert cli.main(["push", str(artifact), NAME]) == cli.OK
    assert contents(artifact).items() <= hub.repositories[NAME].items()
    assert hub.put == [weights]  # once: what arrived before the break was not sent again


def test_a_damaged_artifact_is_not_sent(artifact, hub, capsys) -> None:
    file = artifact / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
    assert cli.main(["push", str(artifact), NAME]) == cli.IMPOSSIBLE
    assert "model.safetensors" in capsys.readouterr().err
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no manifest", "is no artifact (a folder with artifact.json)"),
        ("no card", "has no model card (README.md)"),
        ("no token", "no token of the hub here: log in with `hf auth login`, or set HF_TOKEN"),
        ("wrong token", f"the hub refused the token for {NAME}"),
        ("offline", "HF_HUB_OFFLINE is set"),
        ("no owner", "tiny names no owner: give OWNER/NAME"),
        ("bad name", "me/a b is no name of a repository"),
        ("no network", "cannot be reached ("),
        ("an error of the hub", f"cannot say what {NAME} holds ("),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    artifact, hub, monkeypatch, capsys, change, said
) -> None:
    name = NAME
    if change == "no manifest":
        (artifact / "artifact.json").unlink()
    elif change == "no card":
        (artifact / "README.md").unlink()
    elif change == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif change == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    elif change == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif change == "no owner":
        name = "tiny"
    elif change == "bad name":
        name = "me/a b"
    elif change == "an error of the hub":
        monkeypatch.setattr(PushHub, "get", lambda *_: (503, "Broken"))
    else:
        be_hub(monkeypatch, "http://127.0.0.1:9")
    assert cli.main(["push", str(artifact), name]) == cli.IMPOSSIBLE
    assert said in capsys.readouterr().err
    assert hub.repositories == {}
