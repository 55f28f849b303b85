"""The order in which transforms can be applied."""

from __future__ import annotations

from collections.abc import Sequence

from quant.transforms.base import Transform


def order_refusal(transforms: Sequence[Transform]) -> str | None:
    """Say why transforms cannot be applied in this order, in one sentence; None if they can."""
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
    return None
