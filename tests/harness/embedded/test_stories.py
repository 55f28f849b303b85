"""The stories: the same everywhere, apart between splits, and exact in their probabilities."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from string import Formatter

import pytest

from harness.embedded import lexicon
from harness.embedded.stories import (
    MIN_DISTANCE,
    SEPARATOR,
    SPLITS,
    Dice,
    _Writer,
    choice_items,
    last_word_items,
    split_of,
    stories,
    text,
)

GOLDEN = {
    "train": "71ebe5981d2efc8ee9904b31d67d31105a0c479a582d446e718d4f961b3b09e9",
    "calibration": "4cd7c6702d12ae7b02ecb0bfe166262333db695a6099d3fb9f8949ce23ca9ef0",
    "validation": "80f23bf15bf498d7fd2aad9af556a65bf31a92bd07eab7264d4354080ff97a9d",
    "test": "81f1c606275861f805d3df8f181387e02d9d79c075019418e3e0c0e2ca9890aa",
    "items": "95421c898bf316ead279bec6b09b5fcf3d18545b6fcf8ba1bb54978a68534952",
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_stories_of_a_split_never_change(split: str) -> None:
    digest = hashlib.sha256(text(split, 50).encode()).hexdigest()
    assert digest == GOLDEN[split]


def test_the_first_items_never_change() -> None:
    digest = hashlib.sha256(repr((last_word_items(20), choice_items(20))).encode()).hexdigest()
    assert digest == GOLDEN["items"]


def test_a_story_depends_on_its_number_and_seed_alone() -> None:
    first = list(stories("train", 6))
    assert list(stories("train", 3, start=3)) == first[3:]
    assert list(stories("train", 6)) == first
    assert not set(first) & set(stories("train", 6, seed=1))


def test_splits_never_share_a_story() -> None:
    seen: dict[str, str] = {}
    for split, seed in itertools.product(SPLITS, (0, 1)):
        for story in stories(split, 100, seed):
            assert split_of(story.text) == split
            assert seen.setdefault(story.text, split) == split
    assert len(seen) == 200 * len(SPLITS)
    for item in last_word_items(50):
        assert split_of(item["context"] + item["continuation"] + ".") == "test"


def test_text_joins_whole_stories_with_an_empty_line() -> None:
    assert text("test", 5).split(SEPARATOR) == [story.text for story in stories("test", 5)]
    assert "\n" not in "".join(story.text for story in stories("test", 5))


def test_unknown_split_and_negative_count_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown split 'dev'; the splits are train"):
        stories("dev", 1)
    with pytest.raises(ValueError, match="must not be negative"):
        stories("test", -1)


def test_importing_the_stories_imports_nothing_heavy() -> None:
    code = (
        "import sys, harness.embedded.stories\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_last_word_is_one_of_several_candidates_far_back() -> None:
    for story in stories("test", 200):
        assert story.text == f"{story.context} {story.last_word}."
        assert len(set(story.candidates)) == len(story.candidates) >= 3
        assert story.last_word in story.candidates
        for word in story.candidates:
            assert re.search(rf"\b{word}\b", story.context)
        assert story.distance >= MIN_DISTANCE


def _latest(story_context: str, candidates: tuple[str, ...]) -> str:
    return max(candidates, key=lambda word: story_context.rfind(word))


def _most_frequent(story_context: str, candidates: tuple[str, ...]) -> str:
    words = Counter(re.findall(r"\w+", story_context))
    return max(candidates, key=lambda word: words[word])


@pytest.mark.parametrize("guess", [_latest, _most_frequent])
def test_shallow_guesses_miss_the_last_word(guess: Callable[[str, tuple[str, ...]], str]) -> None:
    items = list(stories("test", 400))
    right = sum(guess(story.context, story.candidates) == story.last_word for story in items)
    assert right / len(items) < 0.5


def test_choice_items_hold_the_right_answer_once() -> None:
    for item in choice_items(30):
        assert len(item["choices"]) == len(set(item["choices"])) >= 3
        assert all(choice.startswith(" ") for choice in item["choices"])
        answer = item["query"] + item["choices"][item["gold"]] + "."
        assert split_of(answer) == "test"


# Probabilities.


class Walk(Dice):
    """Dice that follow a given list of faces, then zeros, and say how many faces there were."""

    def __init__(self, faces: list[int]) -> None:
        super().__init__(0)
        self.faces = faces
        self.counts: list[int] = []

    def index(self, count: int) -> int:
        self.counts.append(count)
        position = len(self.counts) - 1
        return self.faces[position] if position < len(self.faces) else 0


def every_outcome(writer: _Writer, act: Callable[[_Writer], None]) -> Iterator[tuple[str, float]]:
    """Yield the text and log-probability of every choice that `act` can make."""
    faces: list[int] = []
    while True:
        walk = Walk(faces)
        fresh = _Writer(walk)
        fresh.cast, fresh.places = list(writer.cast), list(writer.places)
        fresh.things = [type(thing)(**vars(thing)) for thing in writer.things]
        act(fresh)
        yield " ".join(fresh.sentences), walk.log_probability
        faces = faces + [0] * (len(walk.counts) - len(faces))
        while faces and faces[-1] + 1 == walk.counts[len(faces) - 1]:
            faces.pop()
        if not faces:
            return
        faces[-1] += 1


@pytest.mark.parametrize("event", ["mention", "move"])
def test_the_choices_of_an_event_give_different_texts_and_sum_to_one(event: str) -> None:
    writer = _Writer(Dice(3))
    writer.write()
    # Few free places keep the walk short; it is exhaustive all the same.
    writer.places = list(lexicon.PLACES[:-2])
    for thing, place in zip(writer.things, lexicon.PLACES, strict=False):
        thing.place = place
    outcomes = list(every_outcome(writer, lambda fresh: fresh._event(event)))
    assert len({sentence for sentence, _ in outcomes}) == len(outcomes) > 20
    assert math.fsum(math.exp(logarithm) for _, logarithm in outcomes) == pytest.approx(1)


def test_a_choice_listed_twice_is_twice_as_likely() -> None:
    dice = Walk([1])
    assert dice.pick("aab") == "a"
    assert dice.log_probability == pytest.approx(math.log(2 / 3))


def test_no_list_repeats_a_word_and_words_are_single() -> None:
    for words in (lexicon.NAMES, lexicon.OBJECTS, lexicon.PLACES, *lexicon.WORDS.values()):
        assert len(set(words)) == len(words)
    for name, words in lexicon.WORDS.items():
        assert name == "time" or all(word.isalpha() for word in words)


FAMILIES = {
    "opening": lexicon.OPENINGS,
    "put": lexicon.PUTS,
    "move": lexicon.MOVES,
    "mention": lexicon.MENTIONS,
    "filler": lexicon.FILLERS,
    "closing": lexicon.CLOSINGS,
}
SLOTS = {
    **{slot: lexicon.NAMES for slot in "pq"},
    "l": lexicon.PLACES,
    "o": lexicon.OBJECTS,
    "he": ("he", "she"),
    "his": ("his", "her"),
    "him": ("him", "her"),
}


@cache
def _expressions() -> list[tuple[str, re.Pattern[str]]]:
    names = "|".join(lexicon.NAMES)
    result = []
    for family, patterns in FAMILIES.items():
        for pattern in patterns:
            parts = []
            for literal, slot, _, _ in Formatter().parse(pattern):
                parts.append(re.escape(literal))
                if slot == "cast":
                    parts.append(f"(?:(?:{names})(?:, | and )?)+")
                elif slot:
                    words = SLOTS.get(slot) or lexicon.WORDS[slot.rstrip("2")]
                    parts.append(f"(?i:{'|'.join(sorted(words, key=len, reverse=True))})")
            result.append((family, re.compile("".join(parts))))
    return result


def _parses(story: str) -> list[list[str]]:
    """Return every way to read a story as a sequence of patterns, by their families."""
    if not story:
        return [[]]
    found = []
    for family, expression in _expressions():
        match = expression.match(story)
        if match and story[match.end() : match.end() + 1] in ("", " ", "."):
            rest = story[match.end() :].removeprefix(" ").removeprefix(".")
            found += [[family, *tail] for tail in _parses(rest)]
    return found


def test_a_story_can_be_read_in_one_way_only() -> None:
    # One reading, whose parts the order of families tells apart: the choices follow from the text.
    order = re.compile(
        "opening (put (filler )?){3}put (filler |move |mention ){3,7}"
        "(move |mention )(filler ){2,3}closing"
    )
    for story in stories("train", 150):
        readings = _parses(story.text)
        assert len(readings) == 1
        assert order.fullmatch(" ".join(readings[0]))


def test_log_probability_is_plausible_and_below_zero() -> None:
    items = list(stories("validation", 200))
    per_word = sum(s.log_probability for s in items) / sum(len(s.text.split()) for s in items)
    assert -1.5 < per_word < -0.8
    assert all(story.log_probability < -50 for story in items)
