"""Sources of protocols: the embedded stories, pinned files of the hub, and local files.

A source checks whether a text is available, identifies it for keys, and reads it. Protocols name
their source in one place, harness.data.protocols.PROTOCOLS.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness.data import texts, told
from harness.data.config import DocumentsConfig
from harness.data.texts import ProtocolError
from harness.records.hashes import file_sha256


@dataclass(frozen=True)
class Wanted:
    """A request to a source.

    protocol        id of the protocol, for messages.
    option          the setting that gives a local file for it, for messages.
    calibrates      True: random rows by `seed`; False: the first rows.
    rows            number of rows to read, from the first on; None: all.
    path, data_dir  a local file or folder, and the folder in which a relative path is tried first.
    documents       range of documents in a local file.
    asked           number of windows: the maximum for evaluation, exact for calibration.
    """

    protocol: str
    option: str
    calibrates: bool
    rows: int | None = None
    path: str | None = None
    data_dir: str | Path | None = None
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    asked: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Text:
    """Rows that were read.

    source   the dataset with its revision and file, or the name of the local file.
    numbers  positions of the rows in their file, if not all were taken.
    """

    rows: Iterable[str]
    source: str
    numbers: Sequence[int] | None = None


@dataclass(frozen=True)
class Source:
    """A source of rows.

    check    raises ProtocolError or TextError if they are not available; loads nothing.
    content  identifies the text for keys, by a hash or a pin.
    read     reads the rows.
    """

    check: Callable[[Wanted], object]
    content: Callable[[Wanted], str]
    read: Callable[[Wanted], Text]


def _reads_no_file(wanted: Wanted) -> None:
    if wanted.path is not None:
        raise ProtocolError(f"the protocol {wanted.protocol} reads no file; remove {wanted.option}")


def _stories_content(_wanted: Wanted) -> str:
    return told.generator_hash()


def _stories(wanted: Wanted) -> Text:
    from harness.embedded import stories

    if wanted.calibrates:
        # Unlimited: as many as the windows need, different for every seed.
        split = "calibration"
        found = told.texts(split, seed=wanted.seed)
    else:
        split, count = "test", wanted.rows or wanted.asked
        assert count is not None
        found = told.texts(split, count)
    source = f"embedded stories {stories.GENERATOR_VERSION}, {split} split"
    return Text(found, source)


def _shuffled_stories(wanted: Wanted) -> Text:
    """The stories with the words of each in random order, which `seed` draws too."""
    told_in_order = _stories(wanted)
    draw = random.Random(wanted.seed)

    def shuffled() -> Iterator[str]:
        for story in told_in_order.rows:
            words = story.split()
            draw.shuffle(words)
            yield " ".join(words)

    return Text(shuffled(), f"{told_in_order.source}, words shuffled")


def _nothing(_wanted: Wanted) -> Text:
    return Text((), "the vocabulary")


def _check_prompts(wanted: Wanted) -> None:
    if wanted.path is not None:
        _file(wanted)


def _prompts_content(wanted: Wanted) -> str:
    return "" if wanted.path is None else _file_content(wanted)


def _prompts(wanted: Wanted) -> Text:
    """Random documents of a file, whose beginnings are continued; nothing without a file."""
    if wanted.path is None:
        return Text((), "the model itself")
    found = _file_documents(wanted)
    return Text(found.rows, f"the model itself, after beginnings of {found.source}", found.numbers)


def _check_hub(name: str, wanted: Wanted) -> None:
    if wanted.path is None:
        texts.check_hub(name, wanted.option)
    else:
        _hub_copy(name, wanted.path, wanted)


def _hub_content(name: str, wanted: Wanted) -> str:
    text = texts.HUB_TEXTS[name]
    if wanted.path is None:
        return f"{text.dataset}@{texts.hub_revision(name)}/{text.file}"
    return file_sha256(_hub_copy(name, wanted.path, wanted))


def _hub_rows(name: str, wanted: Wanted) -> Text:
    text = texts.HUB_TEXTS[name]
    if wanted.path is None:
        file = texts.hub_file(name, wanted.option)
        source = f"{text.dataset}@{texts.hub_revision(name)} {text.file}"
    else:
        file = _hub_copy(name, wanted.path, wanted)
        source = file.name
    return Text(texts.read_rows(file, text.field, text.clean, wanted.rows), source)


def _hub_copy(name: str, path: str, wanted: Wanted) -> Path:
    return texts.local_file(name, texts.locate(path, wanted.data_dir))


def _file(wanted: Wanted) -> Path:
    """The local file that a protocol reads; ProtocolError if none was given."""
    if wanted.path is None:
        raise ProtocolError(
            f"the protocol {wanted.protocol} reads a local file; set {wanted.option}=<file>"
        )
    place = texts.locate(wanted.path, wanted.data_dir)
    if place.is_dir():
        raise ProtocolError(f"{place} is a folder; the protocol {wanted.protocol} reads one file")
    return place


def _check_documents(wanted: Wanted) -> None:
    """Refuse a range that no file has. Whether this file has it is known once it has been read."""
    file, chosen = _file(wanted), wanted.documents
    if chosen.start < 0:
        raise ProtocolError(f"documents.start={chosen.start} is too small; use 0 or more")
    if chosen.count is not None and chosen.count < 1:
        raise ProtocolError(
            f"documents.count={chosen.count} is too small; use 1 or more, or null for all"
        )
    texts.require_separator(file, chosen.separator)


def _file_content(wanted: Wanted) -> str:
    return file_sha256(_file(wanted))


def _file_rows(wanted: Wanted) -> Text:
    file = _file(wanted)
    return Text(texts.read_rows(file), file.name)


def _file_documents(wanted: Wanted) -> Text:
    """Documents of a range: the first `asked`, or random ones for calibration."""
    file, chosen = _file(wanted), wanted.documents
    rows = texts.read_documents(file, chosen.separator)
    if not rows[-1]:
        rows.pop()  # a separator at the end of the file does not start a document
    stop = len(rows) if chosen.count is None else chosen.start + chosen.count
    if chosen.start < 0 or stop > len(rows) or stop <= chosen.start:
        raise ProtocolError(
            f"{file.name} has {len(rows)} documents, so documents {chosen.start} to {stop - 1} "
            "cannot be taken from it; correct documents.start and documents.count"
        )
    numbers: Sequence[int] = range(chosen.start, stop)
    if not wanted.calibrates:
        numbers = numbers[: wanted.asked]
    else:
        assert wanted.asked is not None
        if wanted.asked > len(numbers):
            raise ProtocolError(
                f"{wanted.asked} calibration documents were asked for, but the range of "
                f"{file.name} has only {len(numbers)}; widen documents.count or lower "
                "calib.sequences"
            )
        numbers = sorted(random.Random(wanted.seed).sample(numbers, wanted.asked))
    return Text([rows[number] for number in numbers], file.name, numbers)


EMBEDDED = Source(_reads_no_file, _stories_content, _stories)
SHUFFLED = Source(_reads_no_file, _stories_content, _shuffled_stories)
PROMPTS = Source(_check_prompts, _prompts_content, _prompts)
NO_TEXT = Source(_reads_no_file, lambda _wanted: "", _nothing)
FILE = Source(_file, _file_content, _file_rows)
DOCUMENTS = Source(_check_documents, _file_content, _file_documents)


def hub(name: str) -> Source:
    """The source of a text in `texts.HUB_TEXTS`: the pinned hub file, or a local copy of it."""
    return Source(partial(_check_hub, name), partial(_hub_content, name), partial(_hub_rows, name))
