"""Translate errors of Hydra and OmegaConf into one sentence with the next step."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from harness.config.help import groups, keys, options
from harness.config.hints import did_you_mean, key_hint, option_hint
from harness.config.options import words_for
from harness.config.schema import SweepConfig
from harness.errors import ConfigError

LAUNCHERS = "hydra/launcher/"
HELP = "`bitsweep run --help` lists them all"


@contextmanager
def as_sentences(extra: Path | None = None) -> Iterator[None]:
    """Context: turn errors of Hydra into ConfigError, with the original as its cause."""
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error, extra)) from error
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override!r} cannot be read ({_first_line(error)}): write KEY=VALUE without "
            "spaces, and put values with =, commas, brackets or letters outside ASCII in quotes, "
            "as in 'model.path=\"a=b\"'."
        ) from error
    except YAMLError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"a YAML file cannot be read: {said}; correct it.") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_sentence(error)) from error


def _missing_option(error: MissingConfigException, extra: Path | None) -> str:
    """The sentence for a missing group option: the known ones, and the closest."""
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    if missing.startswith(LAUNCHERS):
        return _missing_launcher(missing.removeprefix(LAUNCHERS))
    group, _, name = missing.partition("/")
    known = list(options(group, extra))
    if not known:
        return f"{missing or 'a configuration file'} is not in conf/: {_first_line(error)}; {HELP}."
    said = f"{group}={name} is not an option{option_hint(group, name, known, extra)}"
    if isinstance(error.__cause__, ValueError):  # the name of a scheme, which could not be parsed
        return f"{said}, and not the name of a scheme either: {error.__cause__}"
    return f"{said}: {_choose(group, known)}."


def _missing_launcher(name: str) -> str:
    """The sentence for a launcher that is neither ours nor of an installed plugin of Hydra."""
    known = list(options(LAUNCHERS.rstrip("/")))
    return (
        f"hydra/launcher={name} is not installed{did_you_mean(name, known)}: use "
        f"{', '.join(known)}, or another launcher plugin of Hydra, such as joblib "
        "(pip install hydra-joblib-launcher)."
    )


def _choose(group: str, known: list[str]) -> str:
    if len(known) <= 20:
        return f"choose one of {', '.join(known)}"
    return f"`bitsweep run --help {group}` lists the {len(known)} there are"


def _sentence(error: Exception) -> str:
    reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(reason)
    key = getattr(reason, "full_key", None) or _quoted(str(error))
    if isinstance(reason, MissingMandatoryValue):
        return f"{key} has no value: choose an option that sets it, or add {key}=VALUE."
    unknown = re.search(r"Key '([^']+)' not in '(\w+)'", text)
    if unknown:
        return _unknown_key(_whole_key(str(key or unknown.group(1)), unknown.group(2)))
    if "Config group override must be a string" in text:
        return (
            "a group takes the name of one of its options, and a number was given: write, for "
            f"example, scheme=w4 for scheme=4 ({HELP})."
        )
    if "could not be converted to" in text or "Invalid type assigned" in text:
        return f"{key}: {_first_line(reason)}; {_kind(str(key))}."
    merging = re.search(r"Error merging override (.+)", str(error))
    if merging:
        key = merging.group(1).partition("=")[0].lstrip("+~")
        return f"{merging.group(1)} does not fit: {_kind(key)}."
    if "Could not override" in str(error):
        return _unknown_key(str(key))
    return f"{_first_line(error)} ({HELP})."


def _whole_key(key: str, kind: str) -> str:
    """A key with the part that has it: what a file sets is named from the part of that type on."""
    places = {getattr(_node(name), "__name__", ""): name for name in _keys("")}
    return f"{places[kind]}.{key}" if "." not in key and kind in places else key


def _unknown_key(key: str) -> str:
    """The sentence for a key that is not in the schema: the known ones, and the closest."""
    parent, _, last = key.rpartition(".")
    if parent == LAUNCHERS.rstrip("/").replace("/", "."):
        settings = [each.rpartition(".")[2] for each in keys(LAUNCHERS.rstrip("/"))]
        if last in settings:  # of another one, or none was chosen
            return (
                f"{key} is not a setting of the launcher that is chosen: choose one that has it, "
                "as in hydra/launcher=slurm; `bitsweep run --help launcher` lists those of each."
            )
        return (
            f"{key} is not a setting of this launcher{did_you_mean(last, settings)}: `bitsweep run "
            "--help launcher` lists those of each."
        )
    known = _keys(parent)
    if parent and not known:
        return _unknown_key(parent)
    if not parent:
        known = sorted({*known, *(group.name for group in groups())})
    where = f"{parent} has" if parent else "there are"
    return f"{key} is not a key{key_hint(key, known)}: {where} {', '.join(known)}."


def _keys(dotted: str) -> list[str]:
    """Field names of the schema below a dotted key."""
    node = _node(dotted)
    return [field.name for field in dataclasses.fields(node)] if node is not None else []


def _node(dotted: str) -> type | None:
    node: type = SweepConfig
    for part in [part for part in dotted.split(".") if part]:
        hint = get_type_hints(node).get(part)
        candidates = [hint, *get_args(hint)]
        found = [each for each in candidates if dataclasses.is_dataclass(each)]
        if not found:
            return None
        node = found[0]  # type: ignore[assignment]
    return node


def _kind(key: str) -> str:
    """The type of a key in words."""
    parent, _, last = key.rpartition(".")
    node = _node(parent)
    return words_for(get_type_hints(node).get(last) if node is not None else None)


def _quoted(text: str) -> str | None:
    match = re.search(r"override '([^']+)'", text) or re.search(r"override (\S+?)=", text)
    return match.group(1).rstrip(".") if match else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
