"""Replace local paths in records, which people publish, by paths relative to named roots.

Errors, inputs and configurations contain paths within their text. Known folders are written as
<results>, <model>, <data>, <texts>, <config-dir>, <cache>, <hub>, <code>, <python>, <temporary>,
<here> or <home>. Of any other path only the last name is kept: <elsewhere>/file.txt.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cuda_ext.cache import cache_root
from harness.records.record import Record

# An absolute path of two or more names that is not part of a URL, a ratio or another path.
_ELSEWHERE = re.compile(r"(?<![\w:/.<>*~-])(?:/[\w.@+~=-]+)+/([\w.@+~=-]+)")
_LONG_ENOUGH = 4  # a host named "a" would match everywhere


@dataclass(frozen=True)
class Roots:
    """Absolute folders with their names, longest path first."""

    folders: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Path | None]]) -> Self:
        """Roots of the given folders and of those that every process has."""
        hub = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
        known: list[tuple[str, Path | None]] = [
            *named,
            ("cache", cache_root()),
            ("hub", Path(os.environ.get("HF_HUB_CACHE") or Path(hub) / "hub")),
            ("code", Path(__file__).parents[2]),
            ("python", Path(sys.prefix)),
            ("here", Path.cwd()),
            ("home", Path.home()),
            ("temporary", Path(tempfile.gettempdir())),
        ]
        found: dict[str, str] = {}
        for name, folder in known:
            if folder is None:
                continue
            for path in (folder.absolute(), folder.resolve()):
                if len(path.parts) > 1:
                    found.setdefault(str(path), name)
        ordered = sorted(found.items(), key=lambda item: len(item[0]), reverse=True)
        return cls(tuple((path, name) for path, name in ordered))

    def shown(self, text: str) -> str:
        """The text without local paths and without the host name (in names of temporary files)."""
        if "/" not in text:
            return text
        for path, name in self.folders:
            text = re.sub(rf"(?<![\w.@+~-]){re.escape(path)}(?![\w-])", f"<{name}>", text)
        text = _ELSEWHERE.sub(r"<elsewhere>/\1", text)
        host = platform.node()
        if len(host) < _LONG_ENOUGH:
            return text
        return re.sub(rf"(?<![\w]){re.escape(host)}(?!\w)", "<host>", text)

    def clean(self, record: Record) -> Record:
        """The record with `shown` applied to all texts except a recorded environment.host."""
        cleaned = self._every(record.model_dump())
        if "host" in record.environment:
            cleaned["environment"]["host"] = record.environment["host"]
        return Record.model_validate(cleaned)

    def _every(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.shown(value)
        if isinstance(value, Mapping):
            return {key: self._every(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._every(each) for each in value]
        return value
