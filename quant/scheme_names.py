"""Read the parts of a scheme's name: w3g64_sym, ternary_g8. `Scheme.parse` puts them together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from quant.errors import SchemeError
from quant.levels.base import WIDTHS, Levels, built_in_levels, load_levels
from quant.parts import Part

# Suffixes of scheme names; a name without one has float16 scales.
SCALE_WORDS = {"bf16": "bfloat16", "fp32": "float32"}


def beginning(
    name: str, others: Iterable[str | Part | Levels]
) -> tuple[str | Part | Levels, Levels, str]:
    """Return the levels that a name begins with (as given, and loaded) and the rest of the name."""
    known: list[tuple[str | Part | Levels, Levels]] = [
        (each.name, each) for each in built_in_levels()
    ]
    known += [(given, load_levels(given)) for given in others]
    # Longest prefix first, so that one prefix may be the beginning of another.
    for given, kind in sorted(known, key=lambda pair: -len(pair[1].prefix)):
        rest = name.removeprefix(kind.prefix)
        if rest == name:
            continue
        if not kind.one_width or re.match(r"(_|$|g[0-9]*(_|$))", rest):
            return given, kind, rest
    words = [kind.prefix if kind.one_width else f"{kind.prefix}4" for _, kind in known]
    raise SchemeError(
        f"{name!r} is not the name of a scheme: it must begin with one of {listed(sorted(words))}."
    )


def width(name: str, kind: Levels, rest: str) -> tuple[int, str]:
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    widths = kind.bits or WIDTHS
    if digits not in map(str, widths):
        wrong = f"{digits} is not a bit width" if digits else f"{kind.prefix} has no bit width"
        raise SchemeError(
            f"{name!r}: {wrong}; choose one of {listed(f'{kind.prefix}{bits}' for bits in widths)}."
        )
    return int(digits), rest.removeprefix(digits)


def group(name: str, begun: str, digits: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", digits):
        wrong = f"g{digits} is not a number of columns" if digits else "g has no number of columns"
        raise SchemeError(
            f"{name!r}: {wrong}; write 1 or more without leading zeros, such as "
            f"{begun}{separator(begun)}g128."
        )
    return int(digits)


def options(name: str, begun: str, kind: Levels, rest: str) -> dict[str, Any]:
    """Return the fields that the words after the group set."""
    words = {"sym": ("symmetric", True)} if kind.symmetric else {}
    words |= {grid: ("grid", grid) for grid in kind.grids[1:]}  # type: ignore[misc]
    words |= {word: ("scale_dtype", dtype) for word, dtype in SCALE_WORDS.items()}  # type: ignore[misc]
    found: dict[str, Any] = {}
    first, *given = rest.split("_")
    if first:
        raise SchemeError(
            f"{name!r}: {first!r} cannot follow {begun}; write a group as "
            f"{begun}{separator(begun)}g128, and begin other options with _."
        )
    for word in given:
        if word not in words:
            raise SchemeError(
                f"{name!r}: _{word} is unknown; choose from {listed(f'_{each}' for each in words)}"
                f"{_where_a_group_stands(word, begun)}."
            )
        field, value = words[word]
        if field in found:
            raise SchemeError(f"{name!r}: _{word} sets {field} a second time; leave one out.")
        found[field] = value
    return found


def _where_a_group_stands(word: str, begun: str) -> str:
    if not re.fullmatch(r"g[0-9]*", word):
        return ""
    return f"; a group comes directly after {begun}, as in {begun}{separator(begun)}g128"


def separator(begun: str) -> str:
    """Return the separator in front of the group: "" after a digit (w4g128), else "_"."""
    return "" if begun[-1].isdigit() else "_"


def listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def either(values: Iterable[object]) -> str:
    return " or ".join(str(value) for value in values)
