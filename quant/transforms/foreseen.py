"""What a transform will find in a model, as its skeleton tells before any weight is read.

quant.calibrate.foreseen looks; the plan asks here. What is not seen there is refused, in the same
words, when the model is quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quant.transforms.base import NEVER, WHERE_NEEDED, Transform


@dataclass(frozen=True)
class Input:
    """The input of a group of layers, and the module of the block that makes it.

    layer    full name of the first layer.
    biased   whether every layer has a bias.
    unmade   why no module's parameters can be changed for it; None if some module's can.
    maker    name of that module in the block; "" without one.
    scales   whether that module takes a scaling of the input in; `shifts` the same of a shift.
    further  whether linear layers further in front may take a scaling in, where no module does
             (quant.calibrate.upstream tries it).
    """

    layer: str
    biased: bool
    unmade: str | None
    maker: str = ""
    scales: bool = False
    shifts: bool = False
    further: bool = False

    def lacks(self, transform: Transform, options: Any) -> str | None:
        """Return why a change of this transform will not be folded; None if it may be."""
        if self.unmade is not None:
            return None if self.further and transform.folds_through else self.unmade
        takes = self.shifts if transform.shifts(options) else self.scales
        return None if takes else cannot_take(self.maker)


def cannot_take(maker: str) -> str:
    return f"{maker} cannot take the change in"


def changes_nothing(options: Any, reasons: Sequence[str]) -> str:
    """Return that a transform changes no layer and what to do, to follow its name."""
    why = "; ".join(reasons) or "no layer ran"
    kept = ""
    if hasattr(options, "keep"):
        kept = f"let it keep its changes in front of the layers (keep={WHERE_NEEDED}), "
    return (
        f"changed no layer of this model ({why}): leave it out, {kept}or use a model whose norms "
        "feed its layers alone"
    )


def no_rotation(owner: str, why: str) -> str:
    """Return why a residual stream cannot be rotated and what to do, to follow a name."""
    return (
        f"cannot rotate the residual stream of {owner}: {why}; leave it out, or rotate the inputs "
        "of layers with transform=[hadamard]"
    )


def input_refusal(transform: Transform, options: Any, inputs: Sequence[Input]) -> str | None:
    """Return why a change of inputs would change no layer, to follow its name; None if it may.

    inputs  those of every kind of block; empty if they could not be looked at.
    """
    if transform.change is None or transform.keeps(options) != NEVER or not inputs:
        return None
    reasons = {each.lacks(transform, options) for each in inputs}
    if None in reasons:
        return None
    return changes_nothing(options, sorted(filter(None, reasons)))
