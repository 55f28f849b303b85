"""Calibrate behind rounded inputs: operators that round are attached, then Hessians are collected.

A Hessian of rounded inputs is no function of the one of the inputs, so a block with such operators
runs through the calibration batches again: first for the changes of coordinates before them
(quant.calibrate.transform), if there are any, then for the range of static grids, and last, with
the operators in front of its layers, for the Hessians that the solver gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from quant.blocks import linear_layers, weight_matrix
from quant.calibrate.collect import Collector
from quant.calibrate.neighbours import Names
from quant.calibrate.transform import UNCHANGED, Changed, tensors_of
from quant.errors import failures_of
from quant.input_operator import InputOperator, KeptChange, attach
from quant.transforms.base import Inputs, Transform
from quant.transforms.notes import kept_note


def attach_rounding(
    rounding: tuple[Transform, Any],
    block: nn.Module,
    name: str,
    groups: Sequence[Names],
    changed: Mapping[Names, Changed],
    look: Callable[[], Collector],
) -> dict[Names, Changed]:
    """Put operators that round in front of all layers of `groups`; add a note to what changed.

    name     name of the block in the model.
    changed  the changes of coordinates that the layers have.
    look     look() runs the calibration batches through the block and returns what the layers read,
             with statistics; only a static rounding needs it.
    """
    transform, options = rounding
    assert transform.rounding is not None
    seen = look() if transform.static(options) else None
    linears, done = linear_layers(block), {}
    for names in groups:
        reached = seen is not None and seen.hessians[names].tokens > 0
        inputs = Inputs(
            f"{name}.{names[0]}",
            weight_matrix(linears[names[0]]).shape[1],
            seen.statistics[names].result() if seen is not None and reached else None,
        )
        with failures_of(f"{inputs.name}: transform {transform.name}"):
            tensors = tensors_of(transform, transform.rounding(inputs, options))
            for each in names:
                kept = KeptChange(transform, tensors, options)
                attach(linears[each], InputOperator([kept]))
        before = changed.get(names, UNCHANGED)
        note = kept_note(transform.name, names)
        done[names] = Changed(before.changes, [*before.notes, note])
    return done
