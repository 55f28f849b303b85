"""The order in which transforms can be applied."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from quant.transforms.base import ALWAYS, NEVER, Transform


def order_refusal(chosen: Sequence[tuple[Transform, Any]]) -> str | None:
    """Say why transforms cannot be applied in this order, in one sentence; None if they can.

    chosen  with their options; ValueError for a transform whose `keep` gives no known word.
    """
    transforms = [transform for transform, _ in chosen]
    for each in transforms[1:]:
        if each.prune is not None:
            return (
                f"transform {each.name} removes parts of the model, before anything else is done "
                "to it: list it first, and only one such transform."
            )
    pruned = bool(transforms) and transforms[0].prune is not None
    for each in transforms[1 + pruned :]:
        if each.residual is not None:
            return (
                f"transform {each.name} rotates the residual stream, before anything is "
                "calibrated: list it first, and only one such transform."
            )
    for each in transforms[:-1]:
        if each.rounds:
            return (
                f"transform {each.name} rounds inputs, and a change after it would move them off "
                f"its grid: list {each.name} last, and only one such transform."
            )
    return _behind_another(chosen)


def _behind_another(chosen: Sequence[tuple[Transform, Any]]) -> str | None:
    """Say which change cannot be made, or does nothing, behind another."""
    changes = [(each, options) for each, options in chosen if each.change is not None]
    for (first, its), (second, options) in combinations(changes, 2):
        nothing = first.keeps(its) == ALWAYS and second.keeps(options) == NEVER
        if not nothing and second.reads_statistics and not first.says_statistics(its):
            return (
                f"transform {second.name} reads statistics of inputs, which are unknown behind "
                f"{first.name}: list {second.name} before {first.name}, or leave one of them out."
            )
        if nothing and not first.partial(its):
            return (
                f"transform {second.name} folds its changes into the modules in front of layers, "
                f"and {first.name} before it keeps its own in between: list {second.name} before "
                f"{first.name}, or leave one of them out."
            )
    return None
