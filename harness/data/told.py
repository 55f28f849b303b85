"""Embedded stories from the cache: five of six drafts belong to other splits and are thrown away.

Stories depend only on the sources of the generator, so those that were told once are kept as JSON
lines under its hash in the folder `stories` of the cache (cuda_ext.cache). A damaged file is written
again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from cuda_ext.cache import cache_root, write_atomically
from harness.embedded import stories
from harness.records.hashes import digest, file_sha256

# The first rows of a stream that are kept; about a megabyte.
MOST = 2000


@cache
def generator_hash() -> str:
    """sha256 of the sources of the story generator."""
    folder = Path(__file__).parents[1] / "embedded"
    names = ("stories.py", "lexicon.py")
    return digest([file_sha256(folder / name) for name in names if (folder / name).is_file()])


def texts(split: str, count: int | None = None, seed: int = 0) -> Iterator[str]:
    """Yield the texts of the first `count` stories of a split (None: without end)."""

    def tell(start: int) -> Iterator[str]:
        return (story.text for story in stories.stories(split, sys.maxsize, seed, start))

    return islice(_kept(f"{split}-{seed}", tell), count)


def last_word_items(count: int) -> list[Any]:
    """Return the first `count` LAMBADA-like items (harness.embedded.stories)."""
    return _items("last-word", count, stories.last_word_items)


def choice_items(count: int) -> list[Any]:
    """Return the first `count` multiple-choice items (harness.embedded.stories)."""
    return _items("choices", count, stories.choice_items)


def _items(name: str, count: int, tell: Callable[[int], Iterable[Any]]) -> list[Any]:
    return list(islice(_kept(name, lambda start: islice(tell(count), start, None)), count))


def _kept(name: str, tell: Callable[[int], Iterable[Any]]) -> Iterator[Any]:
    """Yield the rows of a stream: kept ones, then those of tell(how many there were)."""
    file = cache_root() / "stories" / f"{generator_hash()[:16]}-{name}.jsonl"
    held = _read(file)
    yield from held
    if len(held) >= MOST:
        yield from tell(len(held))
        return
    fresh: list[Any] = []
    try:
        for row in tell(len(held)):
            fresh.append(row)
            yield row
    finally:  # the reader stops when it has enough
        if fresh:
            _write(file, [*held, *fresh[: MOST - len(held)]])


def _read(file: Path) -> list[Any]:
    try:
        checksum, _, lines = file.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return []
    if checksum != _checksum(lines):
        return []
    return [json.loads(line) for line in lines.splitlines()]


def _write(file: Path, rows: list[Any]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        write_atomically(file, f"{_checksum(lines)}\n{lines}")
    except OSError:  # they are told again next time
        return


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
