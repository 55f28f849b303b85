"""Stories from the cache: those of the generator, told once, and told again where damaged."""

import json
from itertools import islice
from pathlib import Path

import pytest

from harness.data import told
from harness.embedded import stories


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITSWEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stories"


def no_more_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("told again")

    monkeypatch.setattr(stories, "_story", refuse)


def test_texts_are_those_of_the_generator_across_blocks(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(told, "BLOCK", 3)
    expected = [story.text for story in stories.stories("calibration", 8, seed=2)]
    assert list(islice(told.texts("calibration", seed=2), 8)) == expected
    assert len(list(cache.iterdir())) == 3
    assert list(told.texts("calibration", 2, seed=3)) != expected[:2]
    no_more_telling(monkeypatch)
    assert list(islice(told.texts("calibration", seed=2), 7)) == expected[:7]
    assert list(told.texts("calibration", 8, seed=2)) == expected
    with pytest.raises(AssertionError, match="told again"):
        list(told.texts("calibration", 10, seed=2))


def test_items_are_those_of_the_generator_for_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    words, choices = stories.last_word_items(4), stories.choice_items(4)
    for number in (4, 2):
        assert told.last_word_items(number) == words[:number]
        assert told.choice_items(number) == choices[:number]
    no_more_telling(monkeypatch)
    assert told.last_word_items(2) == words[:2]
    assert told.choice_items(4) == choices


@pytest.mark.parametrize("damage", ["", "[]", '{"rows": []}', "other rows", "cut"])
def test_what_is_damaged_is_told_again(cache: Path, damage: str) -> None:
    expected = told.last_word_items(2)
    (file,) = cache.iterdir()
    whole = json.loads(file.read_text())
    if damage == "other rows":
        damage = json.dumps({**whole, "rows": whole["rows"][:1]})
    file.write_text(file.read_text()[:50] if damage == "cut" else damage)
    assert told.last_word_items(2) == expected
    assert json.loads(file.read_text()) == whole


def test_a_cache_that_cannot_be_written_changes_nothing(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert told.last_word_items(1) == stories.last_word_items(1)


def test_other_sources_of_the_generator_have_files_of_their_own(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    told.last_word_items(1)
    monkeypatch.setattr(told, "generator_hash", lambda: "0" * 64)
    told._generator.cache_clear()
    try:
        told.last_word_items(1)
    finally:
        told._generator.cache_clear()
    assert len(list(cache.iterdir())) == 2
