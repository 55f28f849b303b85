"""Cache of composed cells on disk: Hydra takes 0.16 s of CPU time for every choice of a sweep.

The cells of a command line depend on its words, the YAML files of conf/ and of the user's folder,
the folders that relative paths start from, and the code that composes. All of that is in the cache
key, so entries never expire. Configurations that depend on anything else (environment variables,
time, another search path) are composed every time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from cuda_ext.cache import cache_root, write_atomically
from harness.cell.seeds import without_needless
from harness.config.help import conf_dir
from harness.config.schema import Cell, CellConfig

# Dependencies outside files and words: resolvers (${oc.env:HOME}), other folders and plugins. Only
# oc.select reads the configuration alone.
_ELSEWHERE = re.compile(r"\$\{(?!oc\.select:)[^{}]*:|searchpath|\bhydra[./]")
_MOST_FILES = 2000  # in a user's folder, which may be any folder

_log = logging.getLogger("harness")


def kept_cells(
    overrides: Sequence[str],
    multirun: bool,
    extra: Path | None,
    compose: Callable[[], list[Cell]],
) -> list[Cell]:
    """The cells that compose() returns, from the cache if the same inputs were composed before.

    Arguments as in harness.config.compose.compose_cells; its errors are not cached.
    """
    key = _key(overrides, multirun, extra)
    if key is None:
        return compose()
    file = cache_root() / "cells" / f"{key}.json"
    try:
        return from_json(file.read_text(encoding="utf-8"), extra)
    except (OSError, ValueError, TypeError, KeyError):  # not there yet, or damaged
        cells = compose()
    text = as_json(cells)
    if repr(from_json(text, extra)) == repr(cells):  # not cached if JSON changes a value
        try:
            write_atomically(file, text)
        except OSError as error:
            _log.info("cells will be composed again: %s cannot be written (%s)", file, error)
    return cells


def cells_of(overrides: Sequence[str], multirun: bool, extra: Path | None = None) -> list[Cell]:
    """The cells of a command line, from the cache or composed by Hydra, without needless seeds.

    Arguments and errors as in harness.config.compose.compose_cells.
    """

    def compose() -> list[Cell]:
        from harness.config.compose import compose_cells

        return compose_cells(overrides, multirun, extra)

    return without_needless(kept_cells(overrides, multirun, extra, compose))


def _key(overrides: Sequence[str], multirun: bool, extra: Path | None) -> str | None:
    """A digest of everything that the cells depend on; None if they depend on anything else."""
    if any(_ELSEWHERE.search(each) for each in overrides) or find_spec("hydra_plugins"):
        return None
    files: list[list[str]] = []
    for folder in (conf_dir(), *([] if extra is None else [extra])):
        for path in _files(folder, ".yaml"):
            if len(files) == _MOST_FILES or path is None:
                return None
            try:
                content = path.read_bytes()
            except OSError:  # a link to nowhere
                return None
            # These may use `hydra`: its settings are for launchers only.
            ours = path == conf_dir() / "config.yaml" or conf_dir() / "hydra" in path.parents
            if not ours and _ELSEWHERE.search(content.decode("latin-1")):
                return None
            files.append([str(path.relative_to(folder)), _sha256(content)])
    facts = {
        "overrides": list(overrides),
        "multirun": multirun,
        "extra": None if extra is None else [str(extra.absolute()), extra.is_dir()],
        "files": files,
        "from": [os.getcwd(), os.path.expanduser("~")],
        "code": _code(),
        "versions": [sys.version, version("hydra-core"), version("omegaconf")],
    }
    return _sha256(json.dumps(facts).encode())[:32]


def _files(folder: Path, suffix: str) -> Iterator[Path | None]:
    """The files below a folder in order; yields None if there are too many."""
    seen = 0
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        seen += len(names) + len(folders)
        if seen > _MOST_FILES:
            yield None
        for name in sorted(names):
            if name.endswith(suffix):
                yield Path(place, name)


def _code() -> list[str]:
    """Paths and hashes of the modules that composing may run."""
    root = Path(__file__).resolve().parents[2]
    folders = (Path(__file__).resolve().parent, root / "quant")
    files = [path for folder in folders for path in _files(folder, ".py") if path is not None]
    files.append(root / "harness" / "data" / "config.py")
    return [f"{path.relative_to(root)} {_sha256(path.read_bytes())}" for path in files]


def as_json(cells: Sequence[Cell]) -> str:
    """Cells as text, with its digest in the first line; the user's folder is not in it."""
    text = json.dumps(
        [
            [dataclasses.asdict(cell.config), cell.overrides, cell.published, cell.repeats]
            for cell in cells
        ]
    )
    return f"{_sha256(text.encode())}\n{text}\n"


def from_json(text: str, extra: Path | None) -> list[Cell]:
    """The cells of `as_json`; ValueError, TypeError or KeyError for any other text.

    extra  the user's folder that they were composed with.
    """
    digest, _, rest = text.partition("\n")
    if digest != _sha256(rest.rstrip("\n").encode()):
        raise ValueError("damaged")
    return [
        Cell(_filled(CellConfig, values), tuple(words), extra, tuple(published), repeats)
        for values, words, published, repeats in json.loads(rest)
    ]


_hints: Any = cache(get_type_hints)  # of a class, which every cell has


def _filled(kind: Any, values: Any) -> Any:
    """Inverse of dataclasses.asdict: the `kind` whose fields are `values`."""
    (given, *_) = [each for each in get_args(kind) if each is not NoneType] or [kind]
    if values is None or not dataclasses.is_dataclass(given):
        return values
    hints = _hints(given)
    fields = {name: _filled(hints[name], value) for name, value in values.items()}
    return given(**fields)  # type: ignore[operator]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
