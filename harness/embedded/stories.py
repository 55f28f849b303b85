"""A seeded generator of short stories whose last word needs the whole story.

Each story introduces three or four people, who put four objects in four places, move one now and
then, mention them with the place where they are, and do and say other things in between. The story
ends with an object that was not mentioned for a while, and its last word is where that object is.

The generator is also the best possible language model of its own text.  A story is a sequence of
uniform choices, and different choices never give the same text, so the logarithm of the text's
probability is the sum of those of its choices (`Story.log_probability`, nats).  A trained model can
approach the perplexity that follows from it but, on average, never beat it.

Splits cannot overlap: the SHA-256 of a story's text decides the one split it may appear in, and a
draw that falls into another split is thrown away.  Seeds differ between splits as well.  (Throwing
away is blind to anything a model could learn, so `log_probability` is that of the generator before
the selection.)

Only `random.Random.random` is used, whose stream Python guarantees across versions.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from string import Formatter
from typing import TypeVar

from harness.embedded import lexicon

T = TypeVar("T")
GENERATOR_VERSION = 2
SEPARATOR = "\n\n"
SPLITS = ("train", "calibration", "validation", "test")

# The first hexadecimal digit of the text's SHA-256 decides the split.
_SPLIT_OF_DIGIT = {
    digit: split
    for split, digits in zip(SPLITS, ("0123456", "789", "abc", "def"), strict=True)
    for digit in digits
}
_OBJECTS_PER_STORY = 4
_FILLER_SHARE = (True, False, False)
# What happens in the middle of a story, one entry per equally likely event.
_EVENTS = ("filler", "filler", "mention", "mention", "mention", "move")
# The middle ends with one of these, which keeps it apart from the fillers before the closing.
_LAST_EVENTS = ("mention", "mention", "move")
# The object asked for at the end was last mentioned at least this many sentences before.
MIN_DISTANCE = 4


@dataclass(frozen=True)
class Story:
    """One story.

    `text` is `context + " " + last_word + "."`.  `candidates` are the places that the context
    mentions, in order of their first mention; `last_word` is one of them.  `log_probability` is the
    logarithm, in nats, of the probability with which the generator draws this text.  `distance` is
    the number of sentences between the closing and the last mention of its object.
    """

    text: str
    context: str
    last_word: str
    candidates: tuple[str, ...]
    log_probability: float
    distance: int


class Dice:
    """Random choices, and the logarithm (nats) of the probability of all of them so far."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.log_probability = 0.0

    def pick(self, options: Sequence[T]) -> T:
        """Return one of `options`; an entry that stands there twice is twice as likely."""
        choice = options[self.index(len(options))]
        self.log_probability += math.log(options.count(choice) / len(options))
        return choice

    def index(self, count: int) -> int:
        """Return a uniform integer below `count`; the tests override this to walk every choice."""
        return int(self._random.random() * count)


@dataclass
class _Thing:
    """An object, its place, and the number of the sentence that mentioned it last."""

    name: str
    place: str
    mentioned: int


class _Writer:
    """The state of one story while it is being written."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.sentences: list[str] = []
        self.cast: list[str] = []
        self.things: list[_Thing] = []
        self.places: list[str] = []

    def write(self) -> Story:
        self._opening()
        for number in range(_OBJECTS_PER_STORY):
            self._put()
            if number + 1 < _OBJECTS_PER_STORY and self.dice.pick(_FILLER_SHARE):
                self._filler()
        for _ in range(self.dice.pick((3, 4, 5, 6, 7))):
            self._event(self.dice.pick(_EVENTS))
        self._event(self.dice.pick(_LAST_EVENTS))
        for _ in range(self.dice.pick((2, 3))):
            self._filler()
        return self._closing()

    def _opening(self) -> None:
        pattern = self.dice.pick(lexicon.OPENINGS)
        for _ in range(self.dice.pick((3, 4))):
            self.cast.append(self._new(lexicon.NAMES, self.cast))
        cast = ", ".join(self.cast[:-1]) + " and " + self.cast[-1]
        self.sentences.append(self._fill(pattern, cast=cast))

    def _put(self) -> None:
        name = self._new(lexicon.OBJECTS, [thing.name for thing in self.things])
        thing = _Thing(name, self._new_place(), len(self.sentences))
        self.things.append(thing)
        self._say(lexicon.PUTS, o=name, l=thing.place)

    def _event(self, event: str) -> None:
        if event == "filler":
            self._filler()
            return
        thing = self.dice.pick(self.things)
        thing.mentioned = len(self.sentences)
        if event == "move":
            thing.place = self._new_place()
        patterns = lexicon.MOVES if event == "move" else lexicon.MENTIONS
        self._say(patterns, o=thing.name, l=thing.place)

    def _filler(self) -> None:
        self._say(lexicon.FILLERS)

    def _closing(self) -> Story:
        now = len(self.sentences)
        # Never empty: two fillers stand before the closing, so that only the object of the last
        # event can be too near.
        thing = self.dice.pick([t for t in self.things if now - t.mentioned >= MIN_DISTANCE])
        self._say(lexicon.CLOSINGS, o=thing.name, l=thing.place)
        joined = " ".join(self.sentences)
        return Story(
            text=joined + ".",
            context=joined.removesuffix(" " + thing.place),
            last_word=thing.place,
            candidates=tuple(self.places),
            log_probability=self.dice.log_probability,
            distance=now - thing.mentioned,
        )

    def _new(self, words: Sequence[str], used: Sequence[str]) -> str:
        return self.dice.pick([word for word in words if word not in used])

    def _new_place(self) -> str:
        # A place is used once in a story, so that where an object was never answers for another.
        self.places.append(self._new(lexicon.PLACES, self.places))
        return self.places[-1]

    def _say(self, patterns: Sequence[str], **bound: str) -> None:
        self.sentences.append(self._fill(self.dice.pick(patterns), **bound))

    def _fill(self, pattern: str, **bound: str) -> str:
        """Return the sentence of `pattern`; `bound` names the words that are already decided."""
        parts: list[str] = []
        for literal, slot in _parsed(pattern):
            parts.append(literal)
            if slot:
                parts.append(self._slot(slot, bound))
        sentence = "".join(parts)
        return sentence[0].upper() + sentence[1:]

    def _slot(self, slot: str, bound: dict[str, str]) -> str:
        if slot in _PRONOUNS:
            girl = self._slot("p", bound) in lexicon.GIRLS
            return _PRONOUNS[slot][0 if girl else 1]
        if slot not in bound:
            if slot in ("p", "q"):
                options: Sequence[str] = [n for n in self.cast if n not in bound.values()]
            else:
                # No word twice in a sentence: {adj} and {adj2} differ.
                words = lexicon.WORDS[slot.rstrip("2")]
                options = [w for w in words if w not in bound.values()] if bound else words
            bound[slot] = self.dice.pick(options)
        return bound[slot]


_PRONOUNS = {"he": ("she", "he"), "his": ("her", "his"), "him": ("her", "him")}


@cache
def _parsed(pattern: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, slot) for literal, slot, _, _ in Formatter().parse(pattern))


def split_of(text: str) -> str:
    """Return the only split in which the story `text` may appear."""
    return _SPLIT_OF_DIGIT[hashlib.sha256(text.encode()).hexdigest()[0]]


def _story(split: str, stream: str, seed: int, index: int) -> Story:
    """Return story number `index` of a stream: the first attempt that belongs to `split`."""
    for attempt in range(1_000_000):
        name = f"bitsweep stories {GENERATOR_VERSION}/{split}/{stream}/{seed}/{index}/{attempt}"
        digest = hashlib.sha256(name.encode()).digest()
        story = _Writer(Dice(int.from_bytes(digest[:8], "big"))).write()
        if split_of(story.text) == split:
            return story
    raise AssertionError("a million stories in a row belong to other splits")


def stories(split: str, count: int, seed: int = 0, start: int = 0) -> Iterator[Story]:
    """Yield stories `start` to `start + count - 1` of a split; each depends only on its number.

    Raises ValueError for a split that is not in `SPLITS` and for negative counts.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if count < 0 or start < 0:
        raise ValueError(f"count and start must not be negative, got {count} and {start}")
    return (_story(split, "stories", seed, index) for index in range(start, start + count))


def text(split: str, count: int, seed: int = 0) -> str:
    """Return `count` stories of a split as one text, joined by an empty line (`SEPARATOR`)."""
    return SEPARATOR.join(story.text for story in stories(split, count, seed))


def last_word_items(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return LAMBADA-like items of test stories that are not those of `text("test", ...)`.

    `continuation` is a space and the last word, without the full stop; a greedy model that knows
    `context` should produce it.
    """
    return [
        {"context": story.context, "continuation": " " + story.last_word}
        for story in (_story("test", "last word", seed, index) for index in range(count))
    ]


def choice_items(count: int, seed: int = 0) -> list[dict[str, str | list[str] | int]]:
    """Return multiple-choice items on other stories than `last_word_items` of the same seed.

    `query` is the story without its last word, `choices` are the words of the right kind that it
    mentions (at least three, each with a leading space) and `gold` is the index of the answer.
    """
    return [
        {
            "query": story.context,
            "choices": [" " + word for word in story.candidates],
            "gold": story.candidates.index(story.last_word),
        }
        for story in (_story("test", "choices", seed, index) for index in range(count))
    ]
