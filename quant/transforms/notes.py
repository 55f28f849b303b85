"""Notes on transforms in the results of layers: what was done, or why nothing was."""

from __future__ import annotations

from collections.abc import Sequence

_NOT_APPLIED = "not applied: "


def applied_note(transform: str, maker: str) -> str:
    """Note in a layer's result: the transform was folded into the module `maker`."""
    return f"{transform} into {maker}"


def kept_note(transform: str, layers: Sequence[str]) -> str:
    """Note in a layer's result: the transform's change is kept in front of these layers."""
    return f"{transform} kept in front of {', '.join(layers)}"


def unapplied_note(transform: str, why: str) -> str:
    """Note in a layer's result: the transform could not change the layer's input."""
    return f"{transform} {_NOT_APPLIED}{why}"


def read_note(note: str) -> tuple[str, str | None]:
    """Parse a note: the transform's name, and why it was not applied (None if it was)."""
    name, _, rest = note.partition(" ")
    return name, rest.removeprefix(_NOT_APPLIED) if rest.startswith(_NOT_APPLIED) else None
