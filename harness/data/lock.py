"""The lock file of a results folder: what `bitsweep fetch` brought, and what runs then read.

It names, for every model and dataset that a plan needs, the commit and its files with sizes and
sha256. What is in it is read from this machine's cache only, without a request, and refused if it
is another file. What is not in it is looked for as if there were no lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.data.hub import Wanted
from harness.errors import BitsweepError
from harness.records.hashes import SHA256_DIGITS, file_sha256

NAME = "lock.json"  # in the results folder
VERSION = 1
_SHOWN = 12  # digits of a hash in messages
AGAIN = "run `bitsweep fetch` with the same arguments"


class LockError(BitsweepError):
    """A lock file is damaged, or what it names is missing or another file."""


@dataclass(frozen=True)
class LockedFile:
    """A file of a repository: its name there, size, and sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Locked:
    """What was brought for one need.

    wanted    as the configuration asks for it; its revision may be a branch, or None.
    revision  the commit that was brought.
    made      files that the package `datasets` made of it, by their names below its cache.
    """

    wanted: Wanted
    revision: str
    files: tuple[LockedFile, ...]
    made: tuple[LockedFile, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Lock:
    """All entries of a lock file."""

    file: Path
    entries: dict[Wanted, Locked] = field(default_factory=dict)

    def text(self) -> str:
        """Its JSON; the same entries give the same bytes."""
        entries = [
            {
                **{key: value for key, value in asdict(locked.wanted).items() if value is not None},
                "revision": locked.revision,
                "asked": locked.wanted.revision,
                "files": [asdict(file) for file in locked.files],
                **({"made": [asdict(file) for file in locked.made]} if locked.made else {}),
            }
            for locked in self.entries.values()
        ]
        entries.sort(key=lambda entry: json.dumps(entry, sort_keys=True))
        return json.dumps({"version": VERSION, "entries": entries}, indent=1) + "\n"


_results: ContextVar[Path | None] = ContextVar("results", default=None)
_ignoring: ContextVar[bool] = ContextVar("ignoring", default=False)


def use(results: Path) -> None:
    """Look for locked files in the lock of this results folder from now on."""
    _results.set(results)


@contextmanager
def ignored() -> Iterator[None]:
    """Context: no lock is used, for `bitsweep fetch` itself."""
    _ignoring.set(True)
    try:
        yield
    finally:
        _ignoring.set(False)


def current() -> Lock | None:
    """The lock in use; None without one. Raises LockError for a damaged file."""
    results = _results.get()
    if results is None or _ignoring.get():
        return None
    return read(results / NAME)


def read(file: Path) -> Lock | None:
    """The lock in a file; None if there is no file. Raises LockError for a damaged one."""
    try:
        status = file.stat()
    except OSError:
        return None
    return _read(file, status.st_mtime_ns, status.st_size)


def held(wanted: Wanted) -> Locked | None:
    """What the lock in use has for a need; None without a lock, or if it has nothing."""
    lock = current()
    return None if lock is None else lock.entries.get(wanted)


def snapshot(wanted: Wanted) -> tuple[Locked, list[Path]] | None:
    """The locked entry of a need with its files in the hub's cache, verified; None without one.

    Raises LockError for a file that is missing or another one.
    """
    locked = held(wanted)
    if locked is None:
        return None
    return locked, [_verified(locked, file) for file in locked.files]


def _verified(locked: Locked, file: LockedFile) -> Path:
    from huggingface_hub import try_to_load_from_cache

    what = f"{file.name} of the {locked.wanted.kind} {locked.wanted.repository}"
    found = try_to_load_from_cache(
        locked.wanted.repository,
        file.name,
        revision=locked.revision,
        repo_type=locked.wanted.kind,
    )
    if not isinstance(found, str) or not Path(found).is_file():
        raise LockError(
            f"{what} (commit {locked.revision[:_SHOWN]}) is in {_file()} and not in the cache of "
            f"the hub on this machine: {AGAIN}."
        )
    require(Path(found), file, what)
    return Path(found)


def require_made(locked: Locked, root: Path) -> None:
    """Raise LockError unless the files that `datasets` made of the data are those it will read.

    root  its cache. It reads what was made last of a configuration.
    """
    for file in locked.made:
        what = f"{file.name}, made of the dataset {locked.wanted.repository},"
        path = root / file.name
        if not path.is_file():
            raise LockError(f"{what} is in {_file()} and not in {root}: {AGAIN}.")
        require(path, file, what)
        mine = path.parent  # CONFIGURATION/VERSION/COMMIT
        others = (place for place in mine.parents[1].glob("*/*") if place.is_dir())
        later = [place for place in others if place.stat().st_mtime > mine.stat().st_mtime]
        if later:
            raise LockError(
                f"the dataset {locked.wanted.repository} was made again after {_file()}, of "
                f"another commit: delete {later[0]}, or {AGAIN} and --update."
            )


def require(path: Path, file: LockedFile, what: str) -> None:
    """Raise LockError unless a file is the locked one. The hash of a large file is cached."""
    size = path.stat().st_size
    if size == file.bytes and file_sha256(path.resolve()) == file.sha256:
        return
    differs = (
        f"{size:,} bytes instead of {file.bytes:,}"
        if size != file.bytes
        else f"another sha256 than {file.sha256[:_SHOWN]}..."
    )
    raise LockError(
        f"{what} has {differs}, which {_file()} says: it was changed or cut short; delete "
        f"{path} and {AGAIN}."
    )


def _file() -> Path:
    return (_results.get() or Path()) / NAME


@lru_cache(maxsize=8)
def _read(file: Path, _mtime_ns: int, _size: int) -> Lock:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']}, not {VERSION}")
        entries = [_entry(each) for each in content["entries"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise LockError(
            f"{file} is not a lock file that can be read ({said}): delete it and {AGAIN}."
        ) from error
    return Lock(file, {entry.wanted: entry for entry in entries})


def _entry(said: dict[str, Any]) -> Locked:
    wanted = Wanted(
        said["kind"], said["repository"], said["asked"], said.get("file"), said.get("part")
    )
    return Locked(wanted, said["revision"], _files(said["files"]), _files(said.get("made", ())))


def _files(said: Sequence[dict[str, Any]]) -> tuple[LockedFile, ...]:
    files = tuple(LockedFile(each["name"], each["bytes"], each["sha256"]) for each in said)
    for file in files:
        if len(file.sha256) != SHA256_DIGITS or not isinstance(file.bytes, int):
            raise ValueError(f"{file.name} has no size and sha256")
    return files
