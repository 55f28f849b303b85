"""Block removal by Macro Influence: the blocks that the model's end is least changed without.

The influence of block i is what is lost at the model's end when it passes its input through
(FuseGPT, arXiv 2411.14507, section 3.1):

    MI_i = 1 - mean over tokens of cos(h_L, h_L without block i),

with h_L the hidden states after the last block. The block of the least influence is removed and all
others are scored again, until the stored bits are within the budget. The paper then fuses removed
blocks into their neighbours by training; here nothing is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.pruning import budget
from quant.pruning.budget import Budget, Shapes, alike, budget_of, stored_bits
from quant.transforms.base import Transform

if TYPE_CHECKING:
    from quant.memory.shapes import ModelFacts
    from quant.pruning.cut import Cut
    from quant.pruning.running import Running
    from quant.scheme import Scheme


@dataclass(frozen=True)
class Options(budget.Options):
    """iterative  whether the blocks that are left are scored again after each removal."""

    iterative: bool = True


DEFAULT_OPTIONS = Options()


def prune(running: Running, options: Options = DEFAULT_OPTIONS) -> Cut:
    """Return the blocks to remove, of a model whose blocks are in memory."""
    from quant.pruning.cut import Cut

    count = removals(running.budget(options.bits), running.layers[0], running.scheme)
    removed: list[int] = []
    while len(removed) < count:
        influence = influences(running, removed)
        order = sorted(influence, key=lambda index: (influence[index], index))
        removed += order[:1] if options.iterative else order[:count]
    named = ", ".join(map(str, sorted(removed)))
    return Cut(tuple(sorted(removed)), said=f"block{'s' * (count > 1)} {named}")


def influences(running: Running, removed: list[int]) -> dict[int, float]:
    """Return the Macro Influence of every block that is left, by its number.

    removed  blocks that are removed already; the end is compared with that of the whole model.
    """
    from quant.pruning.running import lost

    whole = running.end()
    left = [index for index in range(len(running)) if index not in removed]
    hidden, found = running.start(), {}
    for place, index in enumerate(left):
        end = hidden
        for later in left[place + 1 :]:
            end = running.through(later, end)
        found[index] = lost(whole, end)
        hidden = running.through(index, hidden)
    return found


def removals(budget: Budget, layers: Shapes, scheme: Scheme) -> int:
    """Return how many blocks with these layers have to go."""
    return math.ceil(budget.excess / stored_bits(layers, scheme.without_head))


def unfit(options: Options, facts: ModelFacts, scheme: Scheme) -> str | None:
    """Say why blocks of a model cannot be removed; None if they can."""
    shape = facts.shape
    if not alike(facts.coverage, shape):
        return (
            f"cannot say what a block of {facts.model_type} takes, because its blocks differ; "
            "leave it out"
        )
    found = budget_of(options.bits, facts.coverage, shape, [shape.layers] * shape.blocks, scheme)
    most = (shape.blocks - 1) * stored_bits(shape.layers, scheme.without_head)
    return found.refusal(most, "one block stays")


def describe(options: Options) -> list[str]:
    """Return the budget, and options that differ from the defaults, in the words of tables."""
    return [*options.words(), *([] if options.iterative else ["scored once"])]


TRANSFORM = Transform(
    name="block_removal",
    label="blocks removed",
    prune=prune,
    unfit=unfit,
    options=Options,
    describe=describe,
)
