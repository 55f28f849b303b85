"""Find the rows that `bitsweep compare` is asked for, by the words that tables name them with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigError
from harness.records.asked import asked_records
from harness.report.frame import from_records
from harness.report.rows import Row, read_rows

MOST_NAMED = 8


@dataclass(frozen=True)
class Named:
    """A row and the folder that it is from."""

    folder: Path
    row: Row

    @property
    def name(self) -> str:
        """The row's name, by which it is found again: model/method/scheme."""
        return "/".join(filter(None, (self.row.model, self.row.name, self.row.scheme_label)))


def pairs_of(first: str, second: str, results: Path) -> list[tuple[Named, Named]]:
    """The pairs of rows to compare: two rows, or the namesakes of two results folders.

    first, second  METHOD/SCHEME in `results`, a folder, or FOLDER:METHOD/SCHEME.

    Raises ConfigError for a row that is not there or is not one, and for folders that share none.
    """
    places = [_place(word, results) for word in (first, second)]
    rows = {folder: _rows(folder) for folder, _ in places}
    if all(words is None for _, words in places):
        return _namesakes(*(rows[folder] for folder, _ in places))
    found = []
    for (folder, words), word in zip(places, (first, second), strict=True):
        if words is None:
            raise ConfigError(
                f"{word} is a folder, but the other side is one row: name a row of the folder too, "
                f"as in {word}:METHOD/SCHEME. It has {_listed(rows[folder])}."
            )
        found.append(_one(words, rows[folder]))
    if found[0] == found[1]:
        raise ConfigError(f"{first} and {second} are the same row, {found[0].name}: name another.")
    return [(found[0], found[1])]


def _place(word: str, results: Path) -> tuple[Path, str | None]:
    """The folder that a word names, and the row's words; None for all of its rows."""
    folder, colon, words = word.rpartition(":")
    if colon and Path(folder).is_dir():
        return Path(folder), words
    if Path(word).is_dir() and ("/" in word or (Path(word) / "cells").is_dir()):
        return Path(word), None
    if colon and ("/" in folder or folder.startswith(".")):
        raise ConfigError(f"there is no folder {folder}: name the results folder of a run.")
    return results, word


def _rows(folder: Path) -> list[Named]:
    return [Named(folder, row) for row in read_rows(from_records(asked_records(folder))).rows]


def _one(words: str, rows: Sequence[Named]) -> Named:
    """The row that has all of the words; of several, the one without options that are not asked.

    Of several still, the one whose calibration is asked: a model may be called as its text.
    """
    asked = set(_words(words))
    found = [each for each in rows if asked and asked <= _words_of(each.row)]
    if len(found) > 1:
        found = [each for each in found if asked >= set(_words(each.row.variant))] or found
    if len(found) > 1:
        found = [each for each in found if asked >= set(_words(each.row.told_by))] or found
    if len(found) == 1:
        return found[0]
    folder = rows[0].folder
    if not found:
        raise ConfigError(f"{words} is no row of {folder}, which has {_listed(rows)}.")
    raise ConfigError(
        f"{words} names {len(found)} rows of {folder}, {_listed(found)}: add the model, method, "
        "scheme, option or calibration that tells them apart."
    )


def _words_of(row: Row) -> set[str]:
    """All words that a row answers to."""
    names = [row.model, row.method, row.label, row.scheme, row.scheme_label, row.calibration or ""]
    names += ["full precision"] * row.full_precision
    return {word for name in names for word in _words(name)}


def _words(text: str) -> Iterator[str]:
    return filter(None, re.split(r"[\s/,]+", text.casefold()))


def _namesakes(first: Sequence[Named], second: Sequence[Named]) -> list[tuple[Named, Named]]:
    """The rows of one name in two folders."""
    if first[0].folder.resolve() == second[0].folder.resolve():
        raise ConfigError(f"{first[0].folder} is named twice: name two results folders, or rows.")
    theirs = {_identity(each.row): each for each in second}
    found = [(each, theirs[key]) for each in first if (key := _identity(each.row)) in theirs]
    if not found:
        raise ConfigError(
            f"{first[0].folder} and {second[0].folder} have no row of one name: the first has "
            f"{_listed(first)}; the second {_listed(second)}. Name two rows, each as "
            "FOLDER:METHOD/SCHEME."
        )
    return found


def _identity(row: Row) -> tuple[str, ...]:
    return row.model, row.label, row.scheme_label, row.calibration or ""


def _listed(rows: Sequence[Named]) -> str:
    names = [each.name for each in rows]
    return ", ".join(names[:MOST_NAMED]) + ", ..." * (len(names) > MOST_NAMED)
