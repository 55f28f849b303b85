"""OPTIN: columns of FFNs and groups of heads whose masks change the features of later blocks least.

A part is worth what the hidden states of the blocks after it lose without it (OPTIN, arXiv
2403.17921: one pass for each part, no gradient, nothing trained). Hidden states h_t of a window are
normalized, f_t = h_t / |h_t|, and their relations M_tu = f_t . f_u compared:

    score of a part in block l = sum over blocks j > l of  mean over t, u of (M_tu - M'_tu)^2,

with M' of the model whose part is masked; of the last block j = l counts. Parts with the least sum
of scores are removed that meet the budget, as if each were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.pruning import structured
from quant.pruning.structured import unfit
from quant.transforms.base import Transform

if TYPE_CHECKING:
    from torch import Tensor

    from quant.pruning.allocate import Ladder
    from quant.pruning.cut import Cut
    from quant.pruning.running import Running
    from quant.pruning.structured import Part
    from quant.scheme import Scheme


@dataclass(frozen=True)
class Options(structured.Options):
    """windows  1, because every part takes a pass through all blocks after it."""

    windows: int = 1


DEFAULT_OPTIONS = Options()


def prune(running: Running, options: Options = DEFAULT_OPTIONS) -> Cut:
    """Return what to remove of a model whose blocks are in memory."""
    parts = structured.parts_of(running, options)
    whole = [running.start()]
    for index in range(len(running)):
        whole.append(running.through(index, whole[-1]))
    ladders: list[list[Ladder]] = [[] for _ in parts]
    for index in range(len(running)):
        readers = [kind[index].reader for kind in parts]
        _, seen = running.watched(index, whole[index], readers)
        for kind, found in zip(parts, ladders, strict=True):
            part = kind[index]
            steps = candidates(running, part, seen[part.reader], running.scheme)
            scores = [trajectory(running, part, step, whole) for step in steps]
            found.append(_ladder(part, steps, scores, running.scheme))
    return structured.cut_of(list(structured.choose(running, options, parts, ladders)))


def candidates(
    running: Running, part: Part, inputs: Sequence[Tensor], scheme: Scheme
) -> list[list[int]]:
    """Return the units that are masked together: each group of heads, or a step of columns.

    Columns stand in the order of |w_j|^2 sum x_j^2, what each adds to the layer's outputs alone, so
    that those of a step are worth about the same.
    """
    from quant.blocks import weight_matrix
    from quant.pruning.units import Heads

    if isinstance(part.unit, Heads):
        return [[group] for group in range(part.unit.groups)]
    weight = weight_matrix(running.source.model.get_submodule(part.reader)).double()
    energy = sum(each.double().square().flatten(0, -2).sum(0) for each in inputs)
    order = (weight.square().sum(0) * energy).argsort(stable=True).tolist()
    size = part.unit.step(scheme)
    whole = len(order) // size * size  # a rest of the columns that add most always stays
    return [order[at : at + size] for at in range(0, whole, size)]


def trajectory(
    running: Running, part: Part, units: Sequence[int], whole: Sequence[Sequence[Tensor]]
) -> float:
    """Return the score of some units.

    whole  hidden states of the whole model before block 0, 1, ... and after the last, by window.
    """
    from quant.pruning.running import masked

    layer = running.source.model.get_submodule(part.reader)
    with masked(layer, part.left(units)):
        hidden = running.through(part.block, whole[part.block])
    last, total = len(running) - 1, 0.0
    if part.block == last:
        return relation_change(whole[-1], hidden)
    for index in range(part.block + 1, last + 1):
        hidden = running.through(index, hidden)
        total += relation_change(whole[index + 1], hidden)
    return total


def relation_change(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the mean over windows and pairs of tokens of (f_t . f_u - f'_t . f'_u)^2."""
    from torch.nn.functional import normalize

    total = 0.0
    for a, b in zip(one, other, strict=True):
        f, g = (normalize(each[0].double(), dim=-1) for each in (a, b))
        total += float((f @ f.T - g @ g.T).square().mean())
    return total / len(one)


def _ladder(
    part: Part, steps: Sequence[Sequence[int]], scores: Sequence[float], scheme: Scheme
) -> Ladder:
    """Return the steps by rising score, without the last where no other unit would stay."""
    from quant.pruning.allocate import Ladder

    order = sorted(range(len(steps)), key=lambda place: (scores[place], place))
    order = order[: structured.most(part.unit, scheme)]
    sums = [0.0]
    for place in order:
        sums.append(sums[-1] + scores[place])
    return Ladder([steps[place] for place in order], sums)


def describe(options: Options) -> list[str]:
    """Return the budget, and options that differ from the defaults, in the words of tables."""
    return options.words()


TRANSFORM = Transform(
    name="optin",
    label="OPTIN",
    prune=prune,
    unfit=unfit,
    options=Options,
    describe=describe,
)
