"""Read texts from pinned files of hub datasets, or from local files.

A text is a list of rows, as in the dataset; `harness.data.protocols` joins, crops and tokenizes
them. Files are read directly (parquet, JSON lines, plain text, gzipped or not), without dataset
scripts.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from harness.data import hub, lock
from harness.errors import BitsweepError

STORY_SEPARATOR = "<|endoftext|>"


class TextError(BitsweepError):
    """A text is not available."""


class AbsentText(TextError):
    """A text of the hub that is not on this machine and cannot be downloaded."""


class ProtocolError(BitsweepError):
    """A protocol is unknown, or its text does not give the requested windows."""


@dataclass(frozen=True)
class HubText:
    """One file of a hub dataset.

    dataset, revision, file  its place; the revision is a commit if the hub has one.
    field    the column with the text.
    names    file names of local copies of the same split.
    clean    the dataset builder's function on a line of the original plain-text file.
    """

    dataset: str
    revision: str
    file: str
    field: str
    names: tuple[str, ...]
    clean: Callable[[str], str]


def wikitext_row(line: str) -> str:
    """Return the dataset row of a WikiText line: blank lines become empty, others stay."""
    return line if line.strip() else ""


_WIKITEXT = ("Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3")
_C4 = ("allenai/c4", "1588ec454efa1a09f29cd18ddd04fe05fc8653a2")
# The dataset is a script, which `datasets` no longer runs; this branch has its rows as parquet.
_PTB = ("ptb-text-only/ptb_text_only", "refs/convert/parquet")


def _wikitext(split: str, short: str) -> HubText:
    return HubText(
        *_WIKITEXT,
        file=f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet",
        field="text",
        names=(f"wiki.{short}.raw", f"wiki.{short}.tokens", f"{short}.txt"),
        clean=wikitext_row,
    )


def _ptb(split: str, short: str) -> HubText:
    return HubText(
        *_PTB,
        file=f"penn_treebank/{split}/0000.parquet",
        field="sentence",
        names=(f"ptb.{short}.txt", f"ptb.{short}.parquet"),
        clean=str.strip,
    )


def _c4(file: str) -> HubText:
    return HubText(*_C4, file=f"en/{file}", field="text", names=(file,), clean=str.strip)


HUB_TEXTS: dict[str, HubText] = {
    "wikitext2-test": _wikitext("test", "test"),
    "wikitext2-train": _wikitext("train", "train"),
    "ptb-test": _ptb("test", "test"),
    "ptb-validation": _ptb("validation", "valid"),
    "ptb-train": _ptb("train", "train"),
    "c4-validation": _c4("c4-validation.00000-of-00008.json.gz"),
    "c4-train": _c4("c4-train.00000-of-01024.json.gz"),
}


def locate(path: str | Path, data_dir: str | Path | None = None) -> Path:
    """Return the existing file or folder `path`; a relative path is tried in `data_dir` first.

    Raises TextError if there is none.
    """
    given = Path(path).expanduser()
    tried = [given] if given.is_absolute() else [Path(data_dir or ".") / given, given]
    for candidate in tried:
        if os.path.exists(candidate):  # False for a name that is too long, and for a loop of links
            return candidate
    places = " or ".join(dict.fromkeys(str(candidate.absolute()) for candidate in tried))
    raise TextError(
        f"there is no file or folder {places}; correct the path"
        + ("" if data_dir or given.is_absolute() else ", or set paths.data to the folder it is in")
    )


def local_file(source: str, path: Path) -> Path:
    """Return the file of text `source` at `path`, which is a file, or a folder with a copy.

    Raises TextError if the folder has no file under any of the names of the text.
    """
    if path.is_file():
        return path
    text = HUB_TEXTS[source]
    names = dict.fromkeys((text.file, Path(text.file).name, *text.names))
    for name in names:
        if (path / name).is_file():
            return path / name
    raise TextError(
        f"the folder {path} has no file for {source}: looked for {', '.join(names)}; "
        "name the file itself"
    )


def hub_file(source: str, option: str) -> Path:
    """Return the hub's file of text `source`, downloaded unless it is in the cache.

    option  the setting that takes a local file instead, for messages.
    Raises AbsentText if it is neither cached nor can be downloaded.
    """
    from huggingface_hub import hf_hub_download

    text = HUB_TEXTS[source]
    locked = lock.snapshot(_wanted(text))
    if locked is not None:
        return locked[1][0]
    try:
        return Path(
            hf_hub_download(text.dataset, text.file, repo_type="dataset", revision=text.revision)
        )
    except (OSError, ValueError) as error:  # every error of the hub client is one of these
        raise AbsentText(_unreachable(source, option, error)) from error


def hub_revision(source: str) -> str:
    """The revision of text `source` that is read: the commit of the lock, else the pinned one.

    A branch may move (that of Penn Treebank has no commit of its own), which a lock notices.
    """
    text = HUB_TEXTS[source]
    locked = lock.held(_wanted(text))
    return text.revision if locked is None else locked.revision


def _unreachable(source: str, option: str, error: Exception | None = None) -> str:
    from huggingface_hub.errors import GatedRepoError

    if hub.offline():
        why, step = "HF_HUB_OFFLINE is set", "unset it on a machine with a network"
    elif isinstance(error, GatedRepoError):
        why, step = "its owner grants access", "ask for it on the hub and log in (hf auth login)"
    else:
        why = f"the hub did not provide it ({type(error).__name__})"
        step = "check the network and try again"
    return _cannot(source, option, why, step)


def _cannot(source: str, option: str, why: str, step: str) -> str:
    text = HUB_TEXTS[source]
    return (
        f"{text.file} of the dataset {text.dataset} (revision {text.revision[:12]}) is not on this "
        f"machine and could not be downloaded, because {why}; {step}, "
        f"or give a local copy: {option}=<file or folder>"
    )


def check_hub(source: str, option: str) -> None:
    """Raise AbsentText for a text whose file is not cached and cannot be downloaded.

    The hub may be switched off (HF_HUB_OFFLINE) or refuse the file.
    """
    from huggingface_hub import try_to_load_from_cache

    text = HUB_TEXTS[source]
    wanted = hub.need(_wanted(text))
    if lock.snapshot(wanted) is not None:
        return
    cached = try_to_load_from_cache(
        text.dataset, text.file, revision=text.revision, repo_type="dataset"
    )
    if isinstance(cached, str):
        return
    if hub.offline():
        raise AbsentText(_unreachable(source, option))
    refused = hub.ask(wanted).refused
    if refused is not None:
        raise AbsentText(_cannot(source, option, *refused))


def _wanted(text: HubText) -> hub.Wanted:
    return hub.Wanted(hub.DATASET, text.dataset, text.revision, text.file)


def read_rows(
    file: Path,
    field: str = "text",
    clean: Callable[[str], str] = str,
    limit: int | None = None,
) -> list[str]:
    """Return the first `limit` rows of a parquet, JSON-lines or text file, gzipped or not.

    In a text file, a row is a line with its line end, after `clean`. Raises TextError for a file
    that cannot be read that way.
    """
    try:
        rows = list(islice(_rows(file, field, clean), limit))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no column {field!r}" if isinstance(error, KeyError) else str(error)
        raise TextError(f"cannot read the text file {file}: {reason}") from error
    if not rows:
        raise TextError(f"the text file {file} is empty; name one with text in it")
    return rows


def _rows(file: Path, field: str, clean: Callable[[str], str]) -> Iterator[str]:
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_rows(file, field)
        return
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.decode("utf-8")
            if not name.endswith((".json", ".jsonl")):
                yield clean(line)
            elif line.strip():
                yield _json_row(line, field, number)


def _json_row(line: str, field: str, number: int) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise ValueError(f'line {number} is not an object with a text under "{field}"')
    result: str = row[field]
    return result


def _parquet_rows(file: Path, field: str) -> Iterator[str]:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(file)
    except ArrowInvalid as error:
        raise ValueError(str(error)) from error
    if field not in table.schema_arrow.names:
        raise KeyError(field)
    for batch in table.iter_batches(columns=[field]):
        yield from batch.column(0).to_pylist()


def require_separator(file: Path, separator: str) -> None:
    """Raise TextError if the documents of a file cannot be told apart. Reads nothing."""
    if not separator and not _has_rows(file):
        raise TextError(
            "the separator of documents is empty; set it to the text between two documents"
        )


def _has_rows(file: Path) -> bool:
    return file.name.removesuffix(".gz").endswith((".json", ".jsonl", ".parquet"))


def read_documents(file: Path, separator: str = STORY_SEPARATOR, field: str = "text") -> list[str]:
    """Return the documents of a file, including empty ones, without surrounding white space.

    Text files are split at `separator`; each row of a JSON-lines or parquet file is a document.
    """
    require_separator(file, separator)
    if _has_rows(file):
        return [row.strip() for row in read_rows(file, field)]
    return [part.strip() for part in "".join(read_rows(file)).split(separator)]


def text_hash(rows: list[str]) -> str:
    """Return the SHA-256 of the rows, each in UTF-8 and followed by a zero byte."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.encode("utf-8"))
        digest.update(b"\0")
    return digest.hexdigest()
