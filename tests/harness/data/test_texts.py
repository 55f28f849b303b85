"""Texts read from hub-like and plain files, and the messages when they cannot be had."""

import gzip
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from harness.data import texts
from harness.data.texts import HUB_TEXTS, TextError

ROWS = ["", " = A heading = \n", "", " A row with ünïcode \n"]


def test_wikitext_lines_become_the_rows_of_the_dataset(tmp_path: Path) -> None:
    file = tmp_path / "wiki.test.raw"
    file.write_text(" \n = A heading = \n \n A row with ünïcode \n", encoding="utf-8")
    assert texts.read_rows(file, clean=texts.wikitext_row) == ROWS


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json", "a.json.gz", "a.jsonl.gz"])
def test_every_structured_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith("parquet"):
        pd.DataFrame({"text": ROWS, "url": ROWS}).to_parquet(file)
    else:
        lines = "".join(json.dumps({"text": row, "url": ""}) + "\n" for row in ROWS).encode()
        file.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    assert texts.read_rows(file) == ROWS
    assert texts.read_rows(file, limit=2) == ROWS[:2]


def test_a_row_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("one\rstill one\u2028and still\x0b\ntwo\n".encode())
    assert texts.read_rows(file) == ["one\rstill one\u2028and still\x0b\n", "two\n"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "fine"}\n', 'a text under "text"'),
        ("a.jsonl.gz", b"not gzip", "cannot read"),
        ("a.parquet", b"not parquet", "cannot read"),
        ("a.txt", b"\xff\xfe", "cannot read"),
        ("a.txt", b"", "is empty"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(TextError, match=says) as caught:
        texts.read_rows(file)
    assert str(file) in str(caught.value)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c4.json.gz"
    lines = "".join(json.dumps({"text": str(n) * 50}) + "\n" for n in range(500)).encode()
    file.write_bytes(gzip.compress(lines)[:-300])
    with pytest.raises(TextError, match="cannot read the text file"):
        texts.read_rows(file)


def test_a_parquet_file_without_the_column_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pd.DataFrame({"body": ROWS}).to_parquet(file)
    with pytest.raises(TextError, match="no column 'sentence'"):
        texts.read_rows(file, "sentence")


def test_documents_are_split_and_stripped(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n<|endoftext|>\n two\nlines <|endoftext|>three")
    assert texts.read_documents(file) == ["one", "two\nlines", "three"]
    assert texts.read_documents(file, "\n") == ["one", "<|endoftext|>", *("two",),
                                                "lines <|endoftext|>three"]  # fmt: skip


def test_a_folder_is_searched_for_the_names_of_the_split(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text("x\n")
    (tmp_path / "wiki.train.raw").write_text("y\n")
    assert texts.local_file("wikitext2-test", tmp_path).name == "wiki.test.raw"
    assert texts.local_file("wikitext2-train", tmp_path).name == "wiki.train.raw"
    hub_layout = tmp_path / HUB_TEXTS["c4-train"].file
    hub_layout.parent.mkdir()
    hub_layout.write_bytes(b"")
    assert texts.local_file("c4-train", tmp_path) == hub_layout
    with pytest.raises(TextError, match=r"no file for ptb-test: looked for .*ptb\.test\.txt"):
        texts.local_file("ptb-test", tmp_path)


def test_relative_paths_are_looked_for_in_the_data_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, work = tmp_path / "data", tmp_path / "work"
    for folder in (data, work):
        folder.mkdir()
        (folder / "a.txt").write_text("a")
    (work / "b.txt").write_text("b")
    monkeypatch.chdir(work)
    assert texts.locate("a.txt", data) == data / "a.txt"
    assert texts.locate("b.txt", data).resolve() == work / "b.txt"
    assert texts.locate(data / "a.txt", None) == data / "a.txt"
    with pytest.raises(TextError, match=r"no file or folder .*c\.txt; .*paths\.data"):
        texts.locate("c.txt")


def test_a_text_that_is_not_cached_names_the_dataset_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    says = r"allenai/c4 .*not on this machine.*calib\.path=<file or folder>"
    with pytest.raises(TextError, match=says):
        texts.check_hub("c4-train", "calib.path")
    with pytest.raises(TextError, match=says):
        texts.hub_file("c4-train", "calib.path")


def test_every_hub_text_is_pinned() -> None:
    for name, text in HUB_TEXTS.items():
        pinned = len(text.revision) == 40 or text.revision == "refs/convert/parquet"
        assert pinned, f"{name} moves with its branch {text.revision}"


def test_the_hash_of_a_text_knows_where_rows_end() -> None:
    assert texts.text_hash(["ab", "c"]) == hashlib.sha256(b"ab\0c\0").hexdigest()
    assert texts.text_hash(["ab", "c"]) != texts.text_hash(["a", "bc"])


@pytest.mark.realdata
def test_wikitext2_rows_joined_are_the_text_of_the_paper(shared: Path) -> None:
    folder = shared / "data" / "wikitext-2-raw"
    rows = texts.read_rows(texts.local_file("wikitext2-test", folder), clean=texts.wikitext_row)
    joined = "\n\n".join(rows)
    assert len(rows) == 4358
    assert joined.encode() == (folder / "test.joined.txt").read_bytes()


@pytest.mark.parametrize(
    ("offline", "error", "words"),
    [
        (True, OSError("no route"), "HF_HUB_OFFLINE is set; unset it"),
        (False, OSError("no route"), "the hub did not provide it (OSError); check the network"),
        (False, None, "its owner grants access; ask for it on the hub and log in"),
    ],
)
def test_the_advice_for_a_missing_text_fits_the_cause(
    monkeypatch: pytest.MonkeyPatch, offline: bool, error: Exception | None, words: str
) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    from harness.suites.zeroshot_data import missing

    refused = httpx.Response(403, request=httpx.Request("GET", "https://hub"))

    def download(*_: object, **__: object) -> None:
        raise error or GatedRepoError("gated", response=refused)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(texts.TextError) as caught:
        texts.hub_file("wikitext2-test", "suite.perplexity.paths.wikitext2")
    assert words in str(caught.value)
    assert ("unset HF_HUB_OFFLINE" in missing("piqa", "piqa")) == offline
