"""Settings that a configuration gives to single layers, by full name or regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

# What a regular expression has, and the full name of a layer has not.
_SIGNS = re.compile(r"[*^$|()\[\]?+\\]")
T = TypeVar("T")


def is_expression(name: str) -> bool:
    """Whether a name in a configuration is a regular expression, not the full name of a layer."""
    return _SIGNS.search(name) is not None


def settings_of(layer: str, given: Mapping[str, T], otherwise: T) -> T:
    """Return what is given for a layer, by its full name.

    Its name counts before any expression, and of these the first that is found in it.
    """
    if layer in given:
        return given[layer]
    for name, settings in given.items():
        if is_expression(name) and re.search(name, layer):
            return settings
    return otherwise
