"""Embedded stories as the cache keeps them, because telling them takes longer than reading them.

Four of five drafts of a story belong to other splits and are thrown away. Stories depend on the
sources of the generator only, so what was told once stays as JSON under their hash in the folder
`stories` of the cache (cuda_ext.cache). What is missing or damaged there is told again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

from cuda_ext.cache import cache_root, write_atomically
from harness.records.hashes import digest, file_sha256

# Stories of one file.
BLOCK = 100


def generator_hash() -> str:
    """sha256 of the sources of the story generator."""
    folder = Path(__file__).parents[1] / "embedded"
    names = ("stories.py", "lexicon.py")
    return digest([file_sha256(folder / name) for name in names if (folder / name).is_file()])


def texts(split: str, number: int | None = None, seed: int = 0) -> Iterator[str]:
    """Yield the texts of the first `number` stories of a split (None: without end)."""
    return islice(_endless(split, seed), number)


def last_word_items(number: int) -> list[dict[str, Any]]:
    """Return the first `number` LAMBADA-like items (harness.embedded.stories)."""
    return _kept(f"last-word-{number}", lambda: _generator()[0].last_word_items(number))


def choice_items(number: int) -> list[dict[str, Any]]:
    """Return the first `number` multiple-choice items (harness.embedded.stories)."""
    return _kept(f"choices-{number}", lambda: _generator()[0].choice_items(number))


def _endless(split: str, seed: int) -> Iterator[str]:
    for start in count(0, BLOCK):

        def tell(start: int = start) -> list[str]:
            return [story.text for story in _generator()[0].stories(split, BLOCK, seed, start)]

        yield from _kept(f"{split}-seed{seed}-from{start}", tell)


def _kept(name: str, tell: Callable[[], list[Any]]) -> list[Any]:
    """Return the rows of a file of the cache, which tell() makes if it is missing or damaged."""
    file = cache_root() / "stories" / f"{_generator()[1][:16]}-{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged
        read = json.loads(file.read_text(encoding="utf-8"))
        if read["sha256"] == digest(read["rows"]):
            return list(read["rows"])
    rows = tell()
    with contextlib.suppress(OSError):  # they are told again next time
        write_atomically(file, json.dumps({"sha256": digest(rows), "rows": rows}) + "\n")
    return rows


@cache
def _generator() -> tuple[Any, str]:
    """The generator, and the hash of its sources as they were when this process imported it."""
    sources = generator_hash()
    from harness.embedded import stories

    return stories, sources
