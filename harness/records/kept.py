"""Files that cost much to make and can be made again, kept in the results folder for other cells.

    results/references/<model>-<key>/<name>

A file is the sha256 of its content and then the content, so that one that was damaged, or that
another program wrote, is seen and made again. It appears under its name when it is whole. Nothing
depends on these files but time: the folder may be removed at any moment.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import StoreError
from harness.records.store import KEY_DIGITS, Store, file_name, write_atomically

FOLDER = "references"
HASH_BYTES = 32

_log = logging.getLogger("harness")


@dataclass
class Kept:
    """The kept files of one model.

    key      sha256 over all that they depend on, but for what their names say; model: its name.
    waiting  waiting(who) is called where another process, `who`, makes files meanwhile.
    """

    store: Store
    model: str
    key: str
    waiting: Callable[[str], None] = lambda _: None
    _full: bool = field(default=False, init=False)  # a file could not be written

    def has(self, name: str) -> bool:
        """Whether there is a file of that name; `get` says whether it is sound."""
        return self._path(name).is_file()

    def get(self, name: str) -> bytes | None:
        """The content of a file; None if there is none, or it is damaged (logged)."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        content = data[HASH_BYTES:]
        if hashlib.sha256(content).digest() == data[:HASH_BYTES]:
            return content
        _log.warning("%s is damaged; it will be made again.", path)
        return None

    def put(self, name: str, content: bytes) -> None:
        """Keep a file. Where it cannot be written the figures are the same, and a warning says why.

        After that nothing more is written here.
        """
        if self._full:
            return
        try:
            write_atomically(self._path(name), hashlib.sha256(content).digest() + content)
        except StoreError as error:
            self._full = True
            _log.warning("%s Only time is lost: it is made anew for every cell.", error)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Context: only this process makes files."""
        with self.store.lock(self.key, self.waiting):
            yield

    def _path(self, name: str) -> Path:
        folder = file_name(f"{self.model}-{self.key[:KEY_DIGITS]}")
        return self.store.root / FOLDER / folder / name
