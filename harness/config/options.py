"""Options of parts: build the options dataclass of a solver or suite from configuration keys."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from harness.config.hints import key_hint
from harness.errors import ConfigError


def build_options(
    kind: type, given: Mapping[str, Any], key: str, where: str, others: Iterable[str] = ()
) -> Any:
    """The dataclass `kind` with the values in `given`, types checked by OmegaConf.

    key     the configuration key of the options, such as "method" or "suite.latency".
    where   the module of the dataclass, for messages.
    others  overrides that choose parts which have an option that this one lacks, for messages.

    Raises ConfigError for an unknown key, a value of a wrong type, and values that the dataclass
    refuses.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name, value in given.items():
        if name not in known:
            raise ConfigError(_unknown(name, value, known, key, where, list(others)))
    try:
        values = _values(kind, given)
    except MissingMandatoryValue as error:
        raise ConfigError(
            f"{key}.{error.full_key} has no value: set it in the file that chooses {where}, or add "
            f"{key}.{error.full_key}=VALUE."
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(_wrong_type(error, kind, key)) from error
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}.{name}={value} is not finite; use a finite number.")
    hints = get_type_hints(kind)
    tuples = {name: tuple(v) for name, v in values.items() if get_origin(hints[name]) is tuple}
    try:
        return kind(**values | tuples)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {_with_key(str(error), known, key)}") from error


def _values(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all fields; the cells of a sweep ask for the same ones again and again."""
    try:
        return copy.deepcopy(_checked(kind, json.dumps(given)))
    except TypeError:  # not JSON
        return _merged(kind, given)


@lru_cache(maxsize=1024)
def _checked(kind: type, given: str) -> dict[str, Any]:
    return _merged(kind, json.loads(given))


def _merged(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    node: Any = OmegaConf.merge(OmegaConf.structured(kind), dict(given))
    return {field.name: _plain(node[field.name]) for field in dataclasses.fields(kind)}


def words_for(hint: Any) -> str:
    """A type in words, such as "it takes a whole number or null"."""
    from typing import get_args

    if get_origin(hint) in (list, tuple):
        return "it takes a list such as [a,b]"
    if get_origin(hint) is dict:
        return "it takes a mapping"
    kinds = [each for each in (get_args(hint) or (hint,)) if each is not type(None)]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    word = words.get(kinds[0], "several keys of its own") if kinds else "another kind of value"
    return f"it takes {word}" + (" or null" if type(None) in get_args(hint) else "")


def _plain(value: Any) -> Any:
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def _with_key(message: str, known: list[str], key: str) -> str:
    """Put the key before a message that begins with the name of a field."""
    first = message.partition("=")[0]
    return f"{key}.{message}" if first in known else message


def _unknown(
    name: str, value: Any, known: list[str], key: str, where: str, others: list[str]
) -> str:
    if others:
        rest = f"leave it out, or use {' or '.join(others)}"
    else:
        rest = f"it has {', '.join(known)}" if known else "it has no options"
    hint = key_hint(f"{key}.{name}", known)
    return f"{key}.{name}={value} is not an option of {where}{hint}: {rest}."


def _wrong_type(error: OmegaConfBaseException, kind: type, key: str) -> str:
    name = error.full_key or str(getattr(error, "key", None) or "")
    hint = get_type_hints(kind).get(name.partition(".")[0].partition("[")[0])
    reason = str(error).strip().splitlines()[0].rstrip(".")
    if "is not a ListConfig" in reason:
        reason = "a single value is no list"
    dotted = f"{key}.{name}" if name else key
    return f"{dotted}: {reason}; {words_for(hint)}."
