"""Content-addressed results: records and artifacts, written atomically.

    results/cells/<model>-<method>-<scheme>-s<seed>-<cell key>/<stage>-<key>.json
                                                               <stage>-<key>.samples.jsonl
    results/artifacts/<model>-<method>-<scheme>-s<seed>-<key>/   a Hugging Face folder
    results/reports/, results/runs/                              tables and plots; logs

A file gets its name only when it is complete and on disk (temporary file, fsync, rename), so a
process killed at any moment leaves either the old state or the new one. Several processes may share
a results folder: each cell has a lock.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import StoreError
from harness.records.hashes import digest, file_sha256
from harness.records.items import with_items
from harness.records.leases import Lease
from harness.records.migrate import migrated, newer_version
from harness.records.record import CellIdentity, Record
from harness.records.temporary import make_temporary
from quant.checkpoint.folder import made_in, working_folder

PROBE_BYTES = 2**16
LONGEST_NAME = 120  # for names that a user chooses; file systems allow 255 bytes
LONGEST_ROOT = 3500  # characters of the results folder's path; Linux allows 4096 bytes for a path
TAKEN_NAMES = {"all"}  # the report that `bitsweep report` writes
WRITERS = 8  # threads, of files that are written together
KEY_DIGITS = 12  # of 64, in file names; the record holds the whole key, which is compared

_log = logging.getLogger("harness")


class DamagedRecord(StoreError):
    """A file at the path of a record that is not a valid record of this version."""


@dataclass(frozen=True)
class Store:
    """A results folder."""

    root: Path

    def record_path(self, cell: CellIdentity, cell_key: str, stage: str, key: str) -> Path:
        """The path of a stage's record."""
        folder = _named_folder(self.root / "cells", cell, cell_key)
        return folder / f"{stage}-{key[:KEY_DIGITS]}.json"

    def artifact_path(self, cell: CellIdentity, key: str) -> Path:
        """The folder of the quantized model of a quantization key, finished or partial."""
        named = _named_folder(self.root / "artifacts", cell, key)
        if os.path.exists(named) or os.path.exists(working_folder(named)):
            return named
        begun = named.parent.glob(working_folder(named.with_name(f"*-{key[:KEY_DIGITS]}")).name)
        return min(map(made_in, begun), default=named)

    def find(self, cell: CellIdentity, cell_key: str, stage: str, key: str) -> Record | None:
        """The record of a stage, ok or failed; None if it is missing or damaged.

        The record gets the names of `cell`, which may have had others when it was written. Raises
        StoreError for a path that can be neither read nor overwritten.
        """
        record = _replaceable(self.record_path(cell, cell_key, stage, key))
        if record is None or record.key != key:
            return None
        return as_named(record, cell)

    def write(self, record: Record, samples: list[dict[str, Any]] | None = None) -> Path:
        """Write a record atomically, with the scores of its documents in a file beside it.

        A failed record never replaces an ok one.
        """
        path = self.record_path(record.cell, record.cell_key, record.suite, record.key)
        found = _replaceable(path) if record.status == "failed" else None
        if found is not None and found.status == "ok":
            return path
        if samples:
            lines = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
            beside = path.with_suffix(".samples.jsonl")
            write_atomically(beside, lines)
            record = record.model_copy(update={"samples_file": beside.name})
        # Validate the JSON once more, so that the file can always be read back.
        text = record.model_dump_json(indent=1)
        Record.model_validate_json(text)
        write_atomically(path, text + "\n")
        return path

    @contextmanager
    def lock(self, key: str, waiting: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Context: the lock of a cell, on every node; a process that dies gives it back.

        waiting(who) is called once if another process, described by `who`, holds the lock.
        """
        file = self.root / ".locks" / f"{key[:KEY_DIGITS]}.lock"
        lease = Lease(file)
        try:
            with disk_errors(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                lease.wait(waiting)
            yield
        finally:
            lease.release()

    def check_writable(self) -> None:
        """Raise StoreError if a probe file cannot be written (full or read-only disk)."""
        probe = self.root / ".locks" / "probe"
        write_atomically(probe, "." * PROBE_BYTES)
        probe.unlink(missing_ok=True)

    def check_place(self) -> None:
        """Raise StoreError if the results folder cannot be written, checked without writing."""
        with disk_errors(self.root):
            require_place(self.root)


def require_place(folder: Path) -> None:
    """Raise OSError if files in a folder cannot be written, checked without writing."""
    if len(str(folder)) > LONGEST_ROOT:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not os.access(place, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


_ELSEWHERE = "choose another folder with paths.results=FOLDER"
_DISK_REASONS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EROFS: f"the disk is read-only: {_ELSEWHERE}",
    errno.EACCES: f"you have no permission to write it: {_ELSEWHERE}",
    errno.EPERM: f"you have no permission to write it: {_ELSEWHERE}",
    errno.ENOTDIR: f"a file is in the way: {_ELSEWHERE}",
    errno.EEXIST: f"a file is in the way: {_ELSEWHERE}",
    errno.EISDIR: "a folder of that name is in the way: move it elsewhere",
    errno.ENAMETOOLONG: f"the path is too long: {_ELSEWHERE}",
    errno.ELOOP: f"its links form a loop: {_ELSEWHERE}",
}


def _named_folder(parent: Path, cell: CellIdentity, key: str) -> Path:
    """The folder of a key: an existing one under any name, or one with the name of the cell."""
    digits = key[:KEY_DIGITS]
    named = parent / f"{cell_name(cell)}-{digits}"
    # Not Path.exists, which raises for a path that is too long; writing reports that.
    if os.path.exists(named) or not os.path.isdir(parent):
        return named
    return min(parent.glob(f"*-{digits}"), default=named)


def as_named(record: Record, cell: CellIdentity) -> Record:
    """A record with the names of `cell`."""
    return record.model_copy(update={"cell": cell.model_copy(update=record.cell.measured())})


def load_records(results: Path) -> list[Record]:
    """All valid records under a results folder, in the order of their paths."""
    return scan_records(results)[0]


def scan_records(results: Path) -> tuple[list[Record], list[str]]:
    """The valid records under a results folder, and a sentence for each invalid file."""
    records, notes = [], []
    for path in record_files(results):
        try:
            records.append(read_record(path))
        except StoreError as error:
            notes.append(f"left out: {error}")
    return records, notes


def record_files(results: Path) -> list[Path]:
    """The files of records under a results folder, in the order of their paths."""
    return sorted((results / "cells").glob("*/*.json"), key=attrgetter("parts"))


def read_record(path: Path) -> Record:
    """Read and validate one record, migrating an older version; StoreError if it is not valid."""
    try:
        text = path.read_bytes().decode()
        try:
            return Record.model_validate_json(text)
        except ValidationError:
            older = Record.model_validate(migrated(text))
            return with_items(older, path.parent)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValidationError, ValueError, RecursionError) as error:
        said = f"{path} is not a record of this version ({_detail(error)})."
        raise DamagedRecord(said) from error


def _detail(error: Exception) -> str:
    if isinstance(error, ValidationError):
        newer = newer_version(error)
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        return newer or "; ".join(lines)
    return str(error).splitlines()[0][:200]


def _replaceable(path: Path) -> Record | None:
    """The record at `path`; None if it is missing or damaged (logged).

    Raises StoreError if the path can be neither read nor overwritten.
    """
    with disk_errors(path):
        if not os.path.lexists(path):
            return None
        if not path.is_file():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    try:
        return read_record(path)
    except DamagedRecord as error:
        _say_once(f"{error} It will be made again.")
        return None


@cache
def _say_once(message: str) -> None:
    _log.warning(message)


def cell_name(cell: CellIdentity) -> str:
    """A readable, portable folder name: model-method-scheme-s<seed>."""
    name = f"{cell.model}-{cell.method}-{cell.scheme}-s{cell.seed}"
    return file_name(name)


def file_name(name: str) -> str:
    """`name` with "_" for characters that are unsafe in file names, shortened if it is long."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    if len(safe) <= LONGEST_NAME:
        return safe
    return f"{safe[: LONGEST_NAME - 9]}-{digest(name)[:8]}"


def unique_name(name: str) -> str:
    """A unique file name: part of the hash of `name` is added if characters had to be replaced."""
    safe = file_name(name)
    if safe == name and re.match(r"[A-Za-z0-9_]", name) and name not in TAKEN_NAMES:
        return name
    return f"{safe.strip('.')[: LONGEST_NAME - 9] or 'report'}-{digest(name)[:8]}"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: temporary file, fsync, rename. Text is UTF-8."""
    write_each({path: content})


def write_each(files: Mapping[Path, str | bytes]) -> None:
    """Write files, each of them atomically, several at once; folders are synced at the end.

    Raises StoreError for the first that cannot be written; those after it may be written or not.
    """
    mode = 0o666 & ~_umask()  # of the whole process, so no thread may ask for it
    folders = dict.fromkeys(path.parent for path in files)
    try:
        if len(files) == 1:
            _replace(*next(iter(files.items())), mode)
        else:  # a disk syncs several files in the time of one
            with ThreadPoolExecutor(WRITERS) as pool:
                list(pool.map(_replace, files, files.values(), repeat(mode)))
    except BaseException:  # those that were written have their names: keep these as well
        for folder in folders:
            with suppress(OSError):
                _sync_folder(folder)
        raise
    for folder in folders:
        with disk_errors(folder):
            _sync_folder(folder)


def _replace(path: Path, content: str | bytes, mode: int) -> None:
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = make_temporary(path.parent, path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Context: turn OSErrors of writing `path` into StoreErrors with the next step."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if "No space left on device" in str(error):  # safetensors has no errno
            number = errno.ENOSPC
        if number is None:
            raise
        reason = _DISK_REASONS.get(number) or f"{os.strerror(number)}: {_ELSEWHERE}"
        raise StoreError(
            f"{_short(path)} could not be written, {reason}, then run the same command again "
            "(finished stages are kept)."
        ) from error


def artifact_digest(folder: Path) -> str:
    """sha256 of an artifact's manifest, which holds the sha256 of each of its files."""
    return file_sha256(folder / "artifact.json")


def weights_digest(folder: Path) -> str:
    """sha256 over the names and hashes of the tensor files of an artifact, as its manifest says.

    They hold codes, grids and all other weights, but no metadata.
    """
    files = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["files"]
    return digest({name: files[name]["sha256"] for name in files if name.endswith(".safetensors")})


def _short(path: Path) -> str:
    """A path for a message; the middle of a long one is left out."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-100:]}"


def _sync_folder(folder: Path) -> None:
    """Sync a folder to make a rename durable, if the platform can open folders."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
