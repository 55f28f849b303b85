"""Cells of a sweep from few compositions: every choice is composed once, not every combination.

Hydra takes 0.2 s a cell. The cells of a sweep differ in the options of some groups and in the seed,
and each of these choices changes few top-level keys. So a cell with several choices that differ
from the first cell's is put together from compositions of the first cell with one of them changed.
Hydra merges files in one order and key by key, so that equals its composition of all of them if

- no top-level key is changed by two of the choices, by files or by interpolations of what they
  change;
- no file of a choice includes files of another group. One of the choices may, such as a model that
  brings its usual calibration text.

Cells for which that does not hold are composed whole.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.help import conf_dir
from harness.config.schema import SweepConfig

Entry = tuple[str, ...]  # the overrides of a cell
SEED = "seed"
_CHOICE = re.compile(r"(\w+)=([\w.+-]+)")
_SEED = re.compile(r"0|[1-9][0-9]*")  # a number in Hydra's grammar


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    source  as Hydra composed it.
    config  its values, interpolations resolved.
    raw     by top-level key: the text of its values, interpolations as they are written.
    named   words in the interpolations of each of these keys.
    """

    config: SweepConfig
    raw: dict[str, str]
    named: dict[str, frozenset[str]]
    source: DictConfig

    def changed(self, other: Composed) -> set[str]:
        """Top-level keys that differ between the two."""
        return {key for key in self.raw | other.raw if self.raw.get(key) != other.raw.get(key)}


def composed(source: DictConfig) -> Composed:
    """What Hydra composed, with its interpolations resolved, and as they are written."""
    values: Any = OmegaConf.to_container(source, resolve=False)
    config = OmegaConf.to_object(source)
    assert isinstance(config, SweepConfig)
    return Composed(
        config,
        {key: repr(value) for key, value in values.items()},
        {key: frozenset(_named(value)) for key, value in values.items()},
        source,
    )


def _seeded(base: Composed, seed: int) -> Composed:
    """A composition with another seed, which Hydra would set last of all."""
    source = copy.deepcopy(base.source)
    source[SEED] = seed
    return composed(source)


def _named(value: Any) -> Iterable[str]:
    """The words of all strings with an interpolation."""
    if isinstance(value, str):
        return re.findall(r"\w+", value) if "${" in value else ()
    parts = value.values() if isinstance(value, dict) else value
    return {w for part in parts for w in _named(part)} if isinstance(value, dict | list) else ()


class Composer:
    """Composes entries by `compose`, as few as it can.

    groups   in which an option may be changed on its own.
    folders  with the files of options, the first one first.
    """

    def __init__(
        self, compose: Callable[[Entry], Composed], groups: Iterable[str], folders: Iterable[Path]
    ) -> None:
        self._compose_whole = compose
        self._keys = {*groups, SEED}
        self._folders = (conf_dir(), *folders)
        self._whole: dict[Entry, Composed] = {}
        self._first: dict[tuple[object, ...], Entry] = {}

    def configuration(self, entry: Entry) -> SweepConfig:
        """The configuration of an entry, interpolations resolved."""
        chosen = self._chosen(entry)
        others = tuple(each for each in entry if _key(each) not in chosen)
        frame = (others, frozenset(chosen.keys() - {SEED}))
        first = self._first.setdefault(frame, entry)
        try:
            found = self._derived(first, chosen)
        except (HydraException, OmegaConfBaseException):  # of a combination that nobody asked for
            found = None
        return found or self._compose(entry).config

    def _compose(self, entry: Entry) -> Composed:
        if entry not in self._whole:
            self._whole[entry] = self._compose_whole(entry)
        return self._whole[entry]

    def _chosen(self, entry: Entry) -> dict[str, str]:
        """The values of an entry that may be changed on their own, by key."""
        matches = (_CHOICE.fullmatch(each) for each in entry)
        found = {m[1]: m[2] for m in matches if m is not None and m[1] in self._keys}
        keys = [_key(each) for each in entry]
        return {key: value for key, value in found.items() if keys.count(key) == 1}

    def _derived(self, first: Entry, chosen: dict[str, str]) -> SweepConfig | None:
        """`first` with the values of `chosen`, put together; None if it must be composed whole."""
        given = self._chosen(first)
        if given.keys() - chosen.keys():
            return None  # a seed
        swapped = {key: value for key, value in chosen.items() if value != given.get(key)}
        base = self._compose(first)
        parts = {key: self._with(first, key, value) for key, value in swapped.items()}
        including = [
            key
            for key, value in swapped.items()
            if not (self._local(key, value) and self._local(key, given.get(key, "")))
        ]
        if len(including) > 1:
            return None
        named = _merged([base, *parts.values()])
        values = dict(vars(base.config))
        seen: set[str] = set()
        for key, part in parts.items():
            reached = _reached({key, *part.changed(base)}, named)
            if reached & seen:
                return None
            seen |= reached
            values |= {each: getattr(part.config, each) for each in reached & values.keys()}
        return copy.deepcopy(SweepConfig(**values))

    def _with(self, first: Entry, key: str, value: str) -> Composed:
        """`first` with another value of a key, composed once."""
        entry = _swapped(first, key, value)
        if key == SEED and _SEED.fullmatch(value) and entry not in self._whole:
            self._whole[entry] = _seeded(self._compose(first), int(value))
        return self._compose(entry)

    def _local(self, group: str, option: str) -> bool:
        """Whether the file of an option includes none but files of its group."""
        return group == SEED or _local(self._folders, group, option)


def _key(override: str) -> str:
    return override.partition("=")[0]


def _merged(every: Iterable[Composed]) -> dict[str, set[str]]:
    """The words in the interpolations of each top-level key, in any of the compositions."""
    named: dict[str, set[str]] = {}
    for each in every:
        for key, words in each.named.items():
            named.setdefault(key, set()).update(words)
    return named


def _reached(changed: set[str], named: dict[str, set[str]]) -> set[str]:
    """The changed keys, and those whose interpolations name one of them, directly or not."""
    while True:
        more = {key for key, words in named.items() if words & changed} - changed
        if not more:
            return changed
        changed = changed | more


def _swapped(entry: Entry, key: str, value: str) -> Entry:
    return (*(each for each in entry if _key(each) != key), f"{key}={value}")


@lru_cache(maxsize=1024)
def _local(folders: tuple[Path, ...], group: str, option: str) -> bool:
    files = [path for each in folders if (path := each / group / f"{option}.yaml").is_file()]
    if not files:
        return True  # a scheme that is read from its name
    read = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    included = read.get("defaults", []) if isinstance(read, dict) else [None]
    return all(
        each == "_self_"
        or (isinstance(each, str) and each.isidentifier() and _local(folders, group, each))
        for each in included
    )
