"""Content-addressed results: records and artifacts that are written whole or not at all.

    results/cells/<model>-<method>-<scheme>-s<seed>-<cell key>/<stage>-<key>.json
                                                               <stage>-<key>.samples.jsonl
    results/artifacts/<model>-<method>-<scheme>-s<seed>-<key>/   a Hugging Face folder
    results/reports/, results/runs/                              tables and plots; logs

A file appears under its name only when it is complete and on disk (temporary file, fsync, rename),
so a process killed at any moment leaves either the old state or the new one. Several processes may
share a results folder: work on a cell is done under its lock.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import StoreError
from harness.models.folders import file_sha256
from harness.records.record import CellIdentity, Record

PROBE_BYTES = 2**16
KEY_DIGITS = 12  # of the 64 in a file name; the whole key is inside the record and is compared


@dataclass(frozen=True)
class Store:
    """A results folder."""

    root: Path

    def record_path(self, cell: CellIdentity, cell_key: str, stage: str, key: str) -> Path:
        """Where the record of a stage belongs."""
        folder = _named_folder(self.root / "cells", cell, cell_key)
        return folder / f"{stage}-{key[:KEY_DIGITS]}.json"

    def artifact_path(self, cell: CellIdentity, key: str) -> Path:
        """Where the quantized model of a quantization key belongs."""
        return _named_folder(self.root / "artifacts", cell, key)

    def find(self, cell: CellIdentity, cell_key: str, stage: str, key: str) -> Record | None:
        """The record of a stage, ok or failed; None when there is none yet.

        It bears the names of `cell`, whatever the cell was called when it was made.
        """
        path = self.record_path(cell, cell_key, stage, key)
        if not path.exists():
            return None
        record = read_record(path)
        if record.key != key:
            return None
        named = cell.model_copy(update=record.cell.measured())
        return record.model_copy(update={"cell": named})

    def write(self, record: Record, samples: list[dict[str, Any]] | None = None) -> Path:
        """Write a record, and the scores of its documents beside it, atomically.

        A record that says failed never replaces one that says ok.
        """
        path = self.record_path(record.cell, record.cell_key, record.suite, record.key)
        if record.status == "failed" and path.exists() and read_record(path).status == "ok":
            return path
        if samples:
            lines = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
            beside = path.with_suffix(".samples.jsonl")
            write_atomically(beside, lines)
            record = record.model_copy(update={"samples_file": beside.name})
        # Validated once more from its own JSON: what is on disk can always be read back.
        text = record.model_dump_json(indent=1)
        Record.model_validate_json(text)
        write_atomically(path, text + "\n")
        return path

    @contextmanager
    def lock(self, cell_key: str) -> Iterator[None]:
        """Held while a process works on a cell; the system releases it when that process dies."""
        from filelock import FileLock

        folder = self.root / ".locks"
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{cell_key[:KEY_DIGITS]}.lock"):
            yield

    def check_writable(self) -> None:
        """Raise StoreError when nothing can be written (full, read-only or foreign disk)."""
        probe = self.root / ".locks" / f"probe-{os.getpid()}"
        write_atomically(probe, "." * PROBE_BYTES)
        probe.unlink(missing_ok=True)


_DISK_REASONS = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your disk quota is used up: free some space",
    errno.EROFS: "the disk is read-only: choose another folder with paths.results=FOLDER",
    errno.EACCES: "it is not yours to write: choose another folder with paths.results=FOLDER",
    errno.ENOTDIR: "a file is in the way: choose another folder with paths.results=FOLDER",
}


def _named_folder(parent: Path, cell: CellIdentity, key: str) -> Path:
    """The folder of a key: the one that is there, under whatever name, or that of the cell."""
    digits = key[:KEY_DIGITS]
    named = parent / f"{cell_name(cell)}-{digits}"
    if named.exists():
        return named
    return min(parent.glob(f"*-{digits}"), default=named)


def load_records(results: Path) -> list[Record]:
    """All records under a results folder, in the order of their paths."""
    return [read_record(path) for path in sorted((results / "cells").glob("*/*.json"))]


def read_record(path: Path) -> Record:
    """One validated record; StoreError says what is wrong with the file."""
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()
        detail = "; ".join(line.strip() for line in first[1:3]) or str(error)
        raise StoreError(
            f"{path} is not a valid record ({detail}): delete this file and run the same command "
            "again to make it anew; the others stay as they are."
        ) from error


def cell_name(cell: CellIdentity) -> str:
    """A readable, portable folder name: model-method-scheme-s<seed>."""
    name = f"{cell.model}-{cell.method}-{cell.scheme}-s{cell.seed}"
    return file_name(name)


def file_name(name: str) -> str:
    """`name` with "_" for whatever is not safe in a file name everywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under its name only when it is complete and on disk; text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say what a full or read-only disk means for the results."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if "No space left on device" in str(error):  # safetensors has no errno
            number = errno.ENOSPC
        reason = _DISK_REASONS.get(number or 0)
        if reason is None:
            raise
        raise StoreError(
            f"{path} could not be written, {reason}, then run the same command again "
            "(finished stages are kept)."
        ) from error


def artifact_digest(folder: Path) -> str:
    """sha256 of an artifact's manifest, which holds the sha256 of each of its files."""
    return file_sha256(folder / "artifact.json")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; not every platform can open a folder."""
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
