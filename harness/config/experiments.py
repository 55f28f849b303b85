"""Experiment files as data: what they regenerate, what they need, which cells they ask for.

Read from YAML without Hydra, so that many files take no time. Composing one is what
harness.config.compose is for.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from harness.config.help import conf_dir
from harness.records.record import FULL_PRECISION

_FACT = re.compile(r"^# ([A-Z][\w ]{1,11}?)  +(\S.*)$")
_FIRST = re.compile(r"[:;(]| \(|\.$")


@dataclass(frozen=True)
class Asked:
    """One cell of a sweep: names of model, method and scheme as records have them, and a seed."""

    model: str
    method: str
    scheme: str
    seed: int


@dataclass(frozen=True)
class Experiment:
    """One file of conf/experiment.

    published  tables that it regenerates.
    facts      lines of its header by name: Hardware, Memory, Disk, Hours, Data, ...
    suites     names of the suites that it measures.
    """

    name: str
    published: tuple[str, ...]
    facts: dict[str, str] = field(hash=False)
    suites: tuple[str, ...]
    cells: tuple[Asked, ...]

    @property
    def command(self) -> str:
        return f"bitsweep run experiment={self.name}"

    def fact(self, name: str) -> str:
        """The beginning of a line of the header, without its explanation; "" if it has none."""
        return _FIRST.split(self.facts.get(name, ""))[0].strip()


def experiments() -> list[Experiment]:
    """The experiments that regenerate published tables, by name."""
    root = conf_dir() / "experiment"
    found = []
    for file in sorted(root.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        read = yaml.safe_load(text)
        if read.get("published"):
            found.append(_experiment(file.relative_to(root).with_suffix("").as_posix(), text, read))
    return found


def experiment(name: str) -> Experiment:
    """One experiment file by its name below conf/experiment, whether or not it has tables."""
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    return _experiment(name, text, yaml.safe_load(text))


def header(text: str) -> dict[str, str]:
    """The lines of a file's header by their names; indented lines continue the one above."""
    found: dict[str, str] = {}
    name = None
    for line in text.splitlines():
        match = _FACT.match(line)
        if match:
            name, found[match[1]] = match[1], match[2]
        elif name is not None and line.startswith("#    "):
            found[name] += f" {line.lstrip('# ')}"
        elif not line.startswith("#"):
            break
    return found


def _experiment(name: str, text: str, read: dict[str, Any]) -> Experiment:
    chosen: dict[str, Any] = {}
    for entry in read["defaults"]:
        if isinstance(entry, dict):
            chosen |= {key.removeprefix("override /"): value for key, value in entry.items()}
    suites = tuple(_top_key("suite", option) for option in chosen.get("suite", ()))
    cells = tuple(dict.fromkeys(_cells(read.get("sweep", []), chosen.get("model", ""))))
    published = tuple(str(each) for each in read.get("published", ()))
    return Experiment(name, published, header(text), suites, cells)


@lru_cache(maxsize=64)
def _top_key(group: str, option: str) -> str:
    """The key of an option's file that is no list of defaults: the name of the suite."""
    read = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8"))
    return str(next(key for key in read if key != "defaults"))


def _cells(sweep: list[dict[str, Any]], model: str) -> Iterator[Asked]:
    for entry in sweep:
        values = (
            [_plain(each) for each in (value if isinstance(value, list) else [value])]
            for value in entry.values()
        )
        for point in itertools.product(*values):
            named = {"model": model, "seed": "0"} | dict(zip(entry, point, strict=True))
            yield Asked(
                _model_name(named["model"]),
                _method_name(named["method"]),
                named["scheme"],
                int(named["seed"]),
            )


def _plain(value: Any) -> str:
    """A value as text; of ${oc.select:key,default}, the default."""
    match = re.fullmatch(r"\$\{oc\.select:[^,]+,(.+)\}", str(value))
    return match[1] if match else str(value)


def _model_name(option: str) -> str:
    """The name in records of an option of the group model."""
    name: str = model_file(option).get("name", option)
    return name


def _method_name(option: str) -> str:
    """The name in records of an option of the group method: its solver's module, or "none"."""
    read = _option("method", option)
    return FULL_PRECISION if read.get("solver") is None else str(read["solver"]).rpartition(".")[2]


def model_file(name: str) -> dict[str, Any]:
    """The keys of the file of a model; empty without a file."""
    return _option("model", name)


@lru_cache(maxsize=1024)
def _option(group: str, name: str) -> dict[str, Any]:
    file: Path = conf_dir() / group / f"{name}.yaml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}
