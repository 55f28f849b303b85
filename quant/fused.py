"""Layers that vLLM makes one layer of when it loads a model, and so reads in one scheme only.

vLLM (packed_modules_mapping of its models) multiplies by q, k and v at once, by gate and up at
once, and has one layer for all experts of a block. A checkpoint whose parts of one have several
schemes is refused when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# Last names of layers of one parent.
TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
)
_WHOLE = {name: names for names in TOGETHER for name in names}
_EXPERT = re.compile(r"^(.*\bexperts)\.\d+\.")


def fused_groups(layers: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the layers, by full name, in the groups that vLLM fuses, in their order.

    A layer that it leaves alone is a group of its own.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for layer in layers:
        parent, _, last = layer.rpartition(".")
        expert = _EXPERT.match(layer)
        key = (expert[1], ()) if expert else (parent, _WHOLE.get(last, (last,)))
        groups.setdefault(key, []).append(layer)
    return [tuple(group) for group in groups.values()]


def fused(layer: str) -> bool:
    """Whether vLLM makes this layer, by its full name, a part of another."""
    return layer.rpartition(".")[2] in _WHOLE or _EXPERT.match(layer) is not None


def split_note(layers: Iterable[str], scheme_of: Callable[[str], str]) -> str | None:
    """Return that vLLM refuses these layers, which groups are at fault and what to do; None if not.

    scheme_of(layer) -> the name of its scheme.
    """
    split = [group for group in fused_groups(layers) if len(set(map(scheme_of, group))) > 1]
    if not split:
        return None
    first = split[0]
    said = ", ".join(f"{layer} {scheme_of(layer)}" for layer in first[:3])
    more = f" and {len(split) - 1} more groups" if len(split) > 1 else ""
    return (
        f"vLLM does not load this checkpoint: it makes one layer of {said}{more}, which has one "
        "scheme there: choose them together (scheme=auto scheme.auto.fused=true, or one pattern "
        "of scheme.layers for all of a group)."
    )
