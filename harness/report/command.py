"""The command line that repeats a cell, from its records alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from harness.config.help import conf_dir
from harness.data.config import DocumentsConfig
from harness.records.record import FULL_PRECISION, QUANTIZATION, Record
from quant.scheme import OUTSIDE

# What records say of a part besides its options.
_NO_OPTIONS = ("name", "version", "code")

# Words that no shell changes: brackets are patterns of files, but match none that has a = in it.
_PLAIN = re.compile(r"[\w./=,:@+\[\]-]+", re.ASCII)

_CONSTANTS = ("null", "true", "false", "nan", "inf")  # of Hydra, if not in quotes


def command(records: Sequence[Record], suites: Mapping[str, Record | None] | None = None) -> str:
    """The `bitsweep run` of one cell with all of its suites, every option as in the records.

    suites  others to run in their place, each as in a record of another cell (None: by default).

    Records name files without folders, so a local model and local texts are named by their last
    names: whoever repeats the cell says where they are.
    """
    record = records[0]
    config, cell = record.config, record.cell
    words = ["bitsweep", "run", *_model(config.get("model") or {}, cell.model)]
    method = config.get("method") or {}
    if "checkpoint" in config:  # quantized elsewhere, and measured as it is
        words += [f"method={FULL_PRECISION}", "scheme=w16"]
    else:
        words += [f"method={cell.method}", *_options("method", method)]
        words += of_scheme(cell.weights, config.get("scheme") or {})
    transforms = config.get("transform") or []
    if transforms:
        words.append(f"transform=[{','.join(each['name'] for each in transforms)}]")
    for each in transforms:
        words += _options(f"transform.{each['name']}", each)
    words += _calibration(config.get("calib"))
    words.append(f"seed={cell.seed}")
    if suites is None:
        suites = {each.suite: each for each in records if each.suite != QUANTIZATION}
    words += _suites(suites)
    runtime = config.get("runtime") or {}
    words += settings("runtime", {key: value for key, value in runtime.items() if value})
    if any(each.config.get("code") or "code" in each.inputs for each in records):
        words += ["--config-dir", "FOLDER"]
    return in_shell(words)


def in_shell(words: Iterable[str]) -> str:
    """One line that a shell reads as these words.

    What names no variable, pattern of files or second command stands without quotes: names in
    records come from other people, and their lines are pasted.
    """
    return " ".join(each if _PLAIN.fullmatch(each) else shlex.quote(each) for each in words)


def settings(key: str, values: Mapping[str, Any]) -> list[str]:
    """Overrides KEY.NAME=VALUE, sorted by name."""
    return [f"{key}.{name}={_text(value)}" for name, value in sorted(values.items())]


def _options(key: str, values: Mapping[str, Any]) -> list[str]:
    return settings(key, {name: each for name, each in values.items() if name not in _NO_OPTIONS})


def of_scheme(name: str, scheme: Mapping[str, Any]) -> list[str]:
    """Overrides that choose a scheme: by its name, with those of layers, or the choice of them."""
    first = re.split("_head_|_emb_", name, maxsplit=1)[0]
    outside = name.removeprefix(first)
    layers = scheme.get("layers") or {}
    if layers:
        said = ", ".join(f"{pattern}: {each}" for pattern, each in layers.items())
        return [f"scheme={first.partition('+')[0]}{outside}", f"scheme.layers={{{said}}}"]
    if "auto" not in scheme:
        return [f"scheme={name}"]
    auto = {key: each for key, each in scheme["auto"].items() if key not in _NO_OPTIONS}
    bits = f"scheme.bits={scheme['bits']:g}"
    own = [each for what in OUTSIDE for each in _outside(what, scheme.get(what))]
    return ["scheme=auto", bits, *settings("scheme.auto", auto), *own]


def _outside(what: str, own: Mapping[str, Any] | None) -> list[str]:
    names = ("bits", "group_size", "symmetric", "levels", "grid", "scale_dtype")
    return settings(f"scheme.{what}", {name: own[name] for name in names}) if own else []


def _model(model: Mapping[str, Any], name: str) -> list[str]:
    """Overrides that choose a model: its own file of conf/model, or its place."""
    name, source = model.get("name") or name, str(model.get("source") or "")
    option = _model_options().get((name, source))
    if option is not None:
        words = [f"model={option}"]
    elif model.get("id"):
        words = ["model=hub", f"model.id={_text(model['id'])}", f"model.name={_text(name)}"]
    else:
        words = ["model=local", "model.path=FOLDER", f"model.name={_text(name)}"]
    for key in ("revision", "dtype", "context", "attention"):
        words += [] if model.get(key) is None else [f"model.{key}={_text(model[key])}"]
    return words


@lru_cache(maxsize=1)
def _model_options() -> dict[tuple[str, str], str]:
    """The options of conf/model by name and source."""
    found = {}
    for file in sorted((conf_dir() / "model").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        said = dict(re.findall(r"^(name|source): *([^\s#]+)", text, re.MULTILINE))
        if file.stem == said.get("name") or (said.get("name"), said.get("source")) not in found:
            found[said.get("name", ""), said.get("source", "")] = file.stem
    for place in ("hub", "local"):  # files for any model, which have no weights of their own
        found.pop((place, place), None)
    return found


def _calibration(calib: Mapping[str, Any] | None) -> list[str]:
    if not calib:
        return []
    given = {key: value for key, value in calib.items() if key not in ("name", "protocol")}
    chosen = of_calibration(calib["name"], calib.get("protocol"))
    return [*chosen, *settings("calib", _given(given))]


def of_calibration(name: str, protocol: str | None) -> list[str]:
    """Overrides that choose a calibration: its own file of conf/calib, or that of its protocol."""
    options = _calibration_options()
    if protocol not in options.values() or options.get(name) == protocol:
        return [f"calib={name}"]
    option = next(option for option, each in options.items() if each == protocol)
    return [f"calib={option}", f"calib.name={_text(name)}"]


@lru_cache(maxsize=1)
def _calibration_options() -> dict[str, str]:
    """The protocol of every option of conf/calib; no two share one."""
    found = {}
    for file in sorted((conf_dir() / "calib").glob("*.yaml")):
        said = re.search(r"^protocol: *(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if said:
            found[file.stem] = said.group(1)
    return found


def _suites(chosen: Mapping[str, Record | None]) -> list[str]:
    """The suites in the order of their names, with their settings."""
    words = [f"suite=[{','.join(sorted(chosen))}]"]
    for name, record in sorted(chosen.items()):
        values = {} if record is None else (record.config.get("suite") or {}).get(name) or {}
        words += settings(f"suite.{name}", _given(values))
    return words


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a value, without the usual ones of documents, under dotted names."""
    usual = {f"documents.{key}": each for key, each in asdict(DocumentsConfig()).items()}
    found = {key: each for key, each in _flat(values) if each is not None}
    return {key: each for key, each in found.items() if usual.get(key) != each}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    """A value as Hydra reads it: quoted where it is not a plain word."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, str):
        return value if _is_word(value) else _quoted(value)
    return json.dumps(value, separators=(",", ":"))


def _is_word(value: str) -> bool:
    return bool(re.fullmatch(r"[\w./-]+", value, re.ASCII)) and value.lower() not in _CONSTANTS


def _quoted(value: str) -> str:
    """Hydra's quotes. It doubles backslashes before a quote alone, and resolves what is in ${}."""
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    value = re.sub(r'(\\*)"', r'\1\1\\"', value)
    value = re.sub(r"(\\+)$", r"\1\1", value)
    return f'"{value}"'
