"""Read the parts of a scheme's name: w3g64_sym, ternary_g8. `Scheme.parse` puts them together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from quant.errors import SchemeError

# Suffixes of scheme names; a name without one has float16 scales.
SCALE_WORDS = {"bf16": "bfloat16", "fp32": "float32"}


def width(name: str, prefix: str, widths: Sequence[int], rest: str) -> tuple[int, str]:
    """Return the bit width after the prefix, and the rest of the name."""
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    if digits not in map(str, widths):
        wrong = f"{digits} is not a bit width" if digits else f"{prefix} has no bit width"
        raise SchemeError(
            f"{name!r}: {wrong}; choose one of {listed(f'{prefix}{bits}' for bits in widths)}."
        )
    return int(digits), rest.removeprefix(digits)


def group(name: str, begun: str, digits: str) -> int:
    """Return the columns of a group, g128."""
    if not re.fullmatch(r"[1-9][0-9]*", digits):
        wrong = f"g{digits} is not a number of columns" if digits else "g has no number of columns"
        raise SchemeError(
            f"{name!r}: {wrong}; write 1 or more without leading zeros, such as "
            f"{begun}{separator(begun)}g128."
        )
    return int(digits)


def options(
    name: str, begun: str, symmetric: bool, grids: Sequence[str], rest: str
) -> dict[str, Any]:
    """Return the fields that the words after the group set; grids are those that have a word."""
    words = {"sym": ("symmetric", True)} if symmetric else {}
    words |= {grid: ("grid", grid) for grid in grids}  # type: ignore[misc]
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


def as_name(message: str, begun: str) -> str:
    """Return an error of a scheme with the keys that it asks for as the name of a scheme has them.

    begun  the name up to the group.
    """

    def written(found: re.Match[str]) -> str:
        name = f"{begun}{separator(begun)}g{found[1]}"
        grids = re.split(", | or ", found[2]) if found[2] else []
        return f"begin its name with {either([f'{name}_{grid}' for grid in grids] or [name])}"

    return re.sub(r"use group_size=(\d+)(?: and grid=([\w, ]+))?", written, message)


def listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def either(values: Iterable[object]) -> str:
    return " or ".join(str(value) for value in values)
