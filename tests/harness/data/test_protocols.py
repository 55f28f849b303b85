"""Windows of every protocol against slow, independent readings of the authors' procedure."""

import gzip
import hashlib
import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import protocols, windows
from harness.data.config import CalibConfig, DocumentsConfig
from harness.data.protocols import CALIBRATION, PROTOCOLS, ProtocolError
from harness.data.texts import TextError


class Characters:
    """A tokenizer whose ids are code points; with bos=True it puts 1 before a text."""

    bos_token_id = 1

    def __init__(self, bos: bool = False) -> None:
        self.bos = bos

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1] * self.bos + [ord(character) for character in text]}


def ids(text: str, bos: bool = False) -> list[int]:
    return [1] * bos + [ord(character) for character in text]


def lists(windows: Sequence[torch.Tensor]) -> list[list[int]]:
    assert all(window.dtype == torch.int64 and window.ndim == 1 for window in windows)
    return [window.tolist() for window in windows]


def write_c4(file: Path, rows: Sequence[str]) -> Path:
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    file.write_bytes(gzip.compress(lines.encode()))
    return file


@pytest.fixture(scope="module")
def c4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1300 documents of 5 to 60 characters, each of one letter, so that crops can be told apart."""
    rng = random.Random(5)
    rows = [chr(200 + n) * rng.randint(5, 60) for n in range(1300)]
    return write_c4(tmp_path_factory.mktemp("c4") / "c4-validation.json.gz", rows)


def rows_of(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in gzip.open(file, "rt", encoding="utf-8")]


def paper_draws(rows: Sequence[str], length: int, number: int, seed: int) -> list[list[int]]:
    """The authors' draws, from their description: the global generator, a document at a time."""
    random.seed(seed)
    found = []
    for _ in range(number):
        row = ""
        while len(row) <= length:
            row = rows[random.randint(0, len(rows) - 1)]
        start = random.randint(0, len(row) - length - 1)
        found.append(ids(row[start : start + length]))
    return found


def test_wikitext2_is_joined_by_blank_lines_and_drops_the_tail(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text(" \n = A = \n \n Bcd \n")
    found = protocols.windows("wikitext2", Characters(bos=True), 6, path=str(tmp_path))
    everything = ids("\n\n = A = \n\n\n\n\n Bcd \n", bos=True)
    assert len(everything) == 21
    assert lists(found.windows) == [everything[:6], everything[6:12], everything[12:18]]
    assert (found.tokens, found.scored) == (18, 15)
    assert found.source == "wiki.test.raw"


def test_the_two_ptb_generations_differ_in_split_and_join(tmp_path: Path) -> None:
    (tmp_path / "ptb.valid.txt").write_text(" valid one \n valid two \n")
    (tmp_path / "ptb.test.txt").write_text(" test one \n test two \n")
    old = protocols.windows("ptb", Characters(), 4, path=str(tmp_path))
    new = protocols.windows("ptb-new", Characters(), 4, path=str(tmp_path))
    assert lists(old.windows) == lists(torch.tensor(ids("valid one\n\nvalid two")[:20]).split(4))
    assert lists(new.windows) == lists(torch.tensor(ids("test one test two")[:16]).split(4))


def test_c4_new_takes_256_windows_of_the_first_1100_documents(c4: Path) -> None:
    joined = ids(" ".join(rows_of(c4)[:1100]))
    for length in (50, 200):
        found = protocols.windows("c4-new", Characters(), length, path=str(c4))
        count = min(256, len(joined) // length)
        assert lists(found.windows) == [joined[length * n : length * (n + 1)] for n in range(count)]
    few = protocols.windows("c4-new", Characters(), 50, path=str(c4), sequences=3)
    assert lists(few.windows) == [joined[50 * n : 50 * (n + 1)] for n in range(3)]


def test_c4_draws_256_windows_with_the_fixed_seed(c4: Path) -> None:
    found = protocols.windows("c4", Characters(), 40, path=str(c4), seed=7)
    assert lists(found.windows) == paper_draws(rows_of(c4), 40, 256, seed=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_c4_calibration_draws_as_the_authors_do(c4: Path, seed: int) -> None:
    config = CalibConfig("c4", "c4-train", path=str(c4), sequences=32, length=48, seed=seed)
    found = protocols.calibration_windows(config, Characters(), 100)
    assert lists(found.windows) == paper_draws(rows_of(c4), 48, 32, seed)


def test_a_document_of_exactly_the_window_is_drawn_again(tmp_path: Path) -> None:
    file = write_c4(tmp_path / "a.json.gz", ["a" * 8, "b" * 9])
    found = protocols.windows(
        "c4-train", Characters(), 8, use=CALIBRATION, path=str(file), sequences=20
    )
    assert lists(found.windows) == [ids("b" * 8)] * 20


@pytest.mark.parametrize(("name", "join"), [("wikitext2-train", "\n\n"), ("ptb-new-train", " ")])
def test_crops_are_drawn_from_the_joined_text(tmp_path: Path, name: str, join: str) -> None:
    file = tmp_path / "text.txt"
    lines = [f"row {n}" for n in range(50)]
    file.write_text("".join(line + "\n" for line in lines))
    rows = [line + "\n" if name == "wikitext2-train" else line for line in lines]
    text = ids(join.join(rows), bos=True)
    random.seed(3)
    starts = [random.randint(0, len(text) - 21) for _ in range(10)]
    found = protocols.windows(
        name, Characters(bos=True), 20, use=CALIBRATION, path=str(file), sequences=10, seed=3
    )
    assert lists(found.windows) == [text[start : start + 20] for start in starts]


def documents_file(folder: Path) -> Path:
    file = folder / "documents.txt"
    file.write_text("zero<|endoftext|>\none one\n<|endoftext|>two<|endoftext|>three<|endoftext|>\n")
    return file


@pytest.mark.parametrize("bos", [True, False])
def test_documents_are_numbered_from_zero_begin_with_bos_and_are_cut(
    tmp_path: Path, bos: bool
) -> None:
    file = documents_file(tmp_path)
    wanted = DocumentsConfig(start=1, count=2)
    found = protocols.windows("documents", Characters(bos), 6, path=str(file), documents=wanted)
    assert lists(found.windows) == [ids("one o", bos=True), ids("two", bos=True)]
    everything = protocols.windows("documents", Characters(bos), 6, path=str(file))
    assert len(everything.windows) == 4, "the separator at the end begins no document"
    assert found.text_hash == hashlib.sha256(b"one one\0two\0").hexdigest()


@pytest.mark.parametrize(("start", "count"), [(0, 5), (4, None), (-1, 2), (1, 0)])
def test_a_range_outside_the_file_is_refused(tmp_path: Path, start: int, count: int | None) -> None:
    wanted = DocumentsConfig(start, count)
    with pytest.raises(ProtocolError, match=r"has 4 documents.*correct documents.start"):
        protocols.windows(
            "documents", Characters(), 6, path=str(documents_file(tmp_path)), documents=wanted
        )


def test_an_empty_document_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one|two| |four")
    wanted = DocumentsConfig(start=1, separator="|")
    with pytest.raises(ProtocolError, match=r"document 2 \(''\) has no token"):
        protocols.windows("documents", Characters(), 6, path=str(file), documents=wanted)


def test_calibration_documents_are_drawn_by_seed(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(100)))

    def draw(seed: int, sequences: int = 10) -> list[list[int]]:
        config = CalibConfig(
            "mine", "documents-calibration", path=str(file), sequences=sequences, length=20,
            seed=seed, documents=DocumentsConfig(start=50),
        )  # fmt: skip
        return lists(protocols.calibration_windows(config, Characters(), 20).windows)

    range_ids = [ids(f"document {n}", bos=True) for n in range(50, 100)]
    assert all(window in range_ids for window in draw(0))
    assert draw(0) == draw(0) != draw(1)
    assert draw(0, 50) == range_ids
    with pytest.raises(ProtocolError, match=r"51 calibration documents.*only 50; widen"):
        draw(0, 51)


@pytest.mark.parametrize(
    ("name", "use", "says"),
    [
        ("wikitext2", "evaluation", "only 21 tokens, which do not fill one window of 99"),
        ("wikitext2-train", CALIBRATION, "the calibration text has only 21 tokens, too few"),
        ("text-calibration", CALIBRATION, "the calibration text has only 21 tokens, too few"),
        ("c4-train", CALIBRATION, r"none of the 1 documents .*longest has 21.*name a text"),
    ],
)
def test_a_text_that_is_too_short_says_what_and_what_next(
    tmp_path: Path, name: str, use: str, says: str
) -> None:
    file = tmp_path / "short.txt"
    file.write_text("twenty-one characters")
    with pytest.raises(ProtocolError, match=says) as caught:
        protocols.windows(name, Characters(), 99, use=use, path=str(file), sequences=2)
    assert f"protocol {name}, short.txt: " in str(caught.value)
    assert "name a" in str(caught.value)


def test_a_calibration_text_of_one_token_more_than_the_window_suffices(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("twenty-one characters")
    found = protocols.windows(
        "text-calibration", Characters(), 20, use=CALIBRATION, path=str(file), sequences=3
    )
    assert lists(found.windows) == [ids("twenty-one character")] * 3
    with pytest.raises(ProtocolError, match="too few"):
        protocols.windows(
            "text-calibration", Characters(), 21, use=CALIBRATION, path=str(file), sequences=3
        )


def test_embedded_protocols_need_no_file_and_do_not_overlap() -> None:
    test = protocols.windows("embedded", Characters(), 2000, sequences=5)
    joined = protocols.windows("embedded-joined", Characters(), 512, sequences=2)
    calibration = [
        protocols.calibration_windows(
            CalibConfig("embedded", "embedded-calibration", sequences=3, length=None, seed=seed),
            Characters(),
            700,
        )
        for seed in (0, 1)
    ]
    stories = ["".join(map(chr, window[1:].tolist())) for window in test.windows]
    assert all(window[0] == 1 for window in test.windows)
    assert all(story.endswith(".") for story in stories)
    text = "\n\n".join(stories)
    assert lists(joined.windows) == [ids(text[:512]), ids(text[512:1024])]
    for found in calibration:
        assert [len(window) for window in found.windows] == [700] * 3
        assert all(window[0] == 1 for window in found.windows)
    assert calibration[0].token_hash != calibration[1].token_hash
    first = "".join(map(chr, calibration[0].windows[0][1:].tolist()))
    assert first.split(". ")[0] not in text


def test_packed_windows_begin_with_a_row_each() -> None:
    rows = ["abc", "defg", "hi", "jklmnop", "q"]
    found, used = windows.packed(iter(rows), Characters(), 7, join="-", number=2)
    assert lists(found) == [ids("abc-de", bos=True), ids("hi-jkl", bos=True)]
    assert used == rows[:4]
    with pytest.raises(ProtocolError, match="fills only 2 windows of 7 tokens, not 3"):
        windows.packed(iter(rows), Characters(), 7, join="-", number=3)


@settings(deadline=None)
@given(st.text(alphabet="ab ", max_size=80), st.integers(2, 9), st.integers(1, 5))
def test_disjoint_windows_are_the_beginning_of_the_text(text: str, length: int, most: int) -> None:
    if len(text) < length:
        with pytest.raises(ProtocolError):
            windows.disjoint([text], Characters(), length, join="")
        return
    found, _ = windows.disjoint([text], Characters(), length, join="", most=most)
    assert len(found) == min(most, len(text) // length)
    assert torch.cat(found).tolist() == ids(text)[: len(found) * length]


def test_the_token_hash_covers_ids_and_borders() -> None:
    windows = [torch.tensor([1, 2, 70000]), torch.tensor([3])]
    expected = hashlib.sha256(struct.pack("<q3qqq", 3, 1, 2, 70000, 1, 3)).hexdigest()
    assert protocols.token_hash(windows) == expected
    assert protocols.token_hash([torch.tensor([1, 2]), torch.tensor([70000, 3])]) != expected


@pytest.mark.parametrize(
    ("name", "use", "says"),
    [
        ("wikitext", "evaluation", "did you mean wikitext2"),
        ("c4-train", "evaluation", "is for calibration, not for evaluation"),
        ("c4", CALIBRATION, "is for evaluation, not for calibration"),
        ("nonsense!", "evaluation", "choose one of wikitext2, ptb"),
    ],
)
def test_an_unknown_protocol_names_the_closest(name: str, use: str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        protocols.check(name, use)


def test_check_finds_what_is_missing_without_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    protocols.check("embedded")
    protocols.check("documents", path=str(documents_file(tmp_path)))
    with pytest.raises(TextError, match=r"suite\.perplexity\.paths\.ptb-new=<file or folder>"):
        protocols.check("ptb-new")
    with pytest.raises(TextError, match="no file or folder"):
        protocols.check("wikitext2", path="nowhere.raw")
    with pytest.raises(ProtocolError, match=r"reads a local file; set calib\.path=<file>"):
        protocols.check("text-calibration", CALIBRATION)
    with pytest.raises(ProtocolError, match=r"reads no file; remove suite\.perplexity\.paths"):
        protocols.check("embedded", path="x")
    with pytest.raises(ProtocolError, match="is a folder"):
        protocols.check("text", path=str(tmp_path))


def test_every_protocol_can_be_described_and_cut() -> None:
    for name, protocol in PROTOCOLS.items():
        assert name == protocol.id
        assert protocol.summary
        assert protocol.windowing in (
            "disjoint",
            "crops",
            "document-crops",
            "documents",
            "packed",
            "random",
            "generated",
        )
        if protocol.use == CALIBRATION:
            assert protocol.windows is None


def test_the_context_is_the_model_s_unless_less_is_asked_for() -> None:
    opt = SimpleNamespace(model_type="opt", max_position_embeddings=2048)
    gpt2 = SimpleNamespace(model_type="gpt2", n_positions=1024)
    bloom = SimpleNamespace(model_type="bloom")
    assert protocols.context_length(opt) == 2048
    assert protocols.context_length(gpt2, 512) == 512
    assert protocols.context_length(bloom, 2048) == 2048
    with pytest.raises(ProtocolError, match=r"states no context length; set model\.context"):
        protocols.context_length(bloom)
    with pytest.raises(ProtocolError, match=r"windows of 2048 tokens do not fit .* 1024 positions"):
        protocols.context_length(gpt2, 2048)


def test_calibration_longer_than_the_context_is_refused() -> None:
    config = CalibConfig("embedded", "embedded-calibration", sequences=1, length=2048)
    with pytest.raises(ProtocolError, match=r"calib\.length is 2048, .* context is 512"):
        protocols.calibration_windows(config, Characters(), 512)


def test_protocols_are_known_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, harness.data.protocols; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_shuffled_stories_have_the_words_of_the_stories(monkeypatch: pytest.MonkeyPatch) -> None:
    told_texts = ["one two three four", "a b c d e f", "x y"]
    monkeypatch.setattr("harness.data.sources.told.texts", lambda *_, **__: iter(told_texts))
    found = protocols.windows(
        "embedded-shuffled", Characters(bos=True), 9, use=CALIBRATION, sequences=2, seed=4
    )
    draw = random.Random(4)
    expected = []
    for text in told_texts[:2]:
        words = text.split(" ")
        draw.shuffle(words)
        expected.append(ids(" ".join(words), bos=True)[:9])
    assert lists(found.windows) == expected
    assert expected[1] != ids(told_texts[1], bos=True)[:9]


def test_random_tokens_are_drawn_evenly_from_all_but_special_ones() -> None:
    class Small(Characters):
        all_special_ids = (1, 3)

        def __len__(self) -> int:
            return 8

    find = lambda seed: protocols.windows(  # noqa: E731
        "random-tokens", Small(), 101, use=CALIBRATION, sequences=60, seed=seed
    )
    found = find(0)
    drawn = [token for window in lists(found.windows) for token in window[1:]]
    assert [window[0] for window in lists(found.windows)] == [1] * 60, "BOS comes first"
    assert {len(window) for window in found.windows} == {101}
    counts = [drawn.count(token) for token in range(8)]
    assert counts[1] == counts[3] == 0
    expected = 6000 / 6
    chi_squared = sum((counts[token] - expected) ** 2 / expected for token in (0, 2, 4, 5, 6, 7))
    assert chi_squared < 20.5, "the 99.9 % point of 5 degrees of freedom"
    assert find(0).token_hash == found.token_hash != find(1).token_hash
    with pytest.raises(ProtocolError, match=r"reads no file; remove calib\.path"):
        protocols.check("random-tokens", CALIBRATION, path="a.txt")


def test_a_tokenizer_of_special_tokens_alone_draws_nothing() -> None:
    class Special(Characters):
        all_special_ids = (0, 1)

        def __len__(self) -> int:
            return 2

    with pytest.raises(ProtocolError, match="has 2 tokens and all are special"):
        protocols.windows("random-tokens", Special(), 4, use=CALIBRATION, sequences=1)
