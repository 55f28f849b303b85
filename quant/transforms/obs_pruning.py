"""OBS pruning: columns of FFNs and groups of heads whose removal costs their reader least.

The layer W [out, in] that reads them has inputs x with H = sum x x^T over tokens. Without the
inputs S, and with the best weights for the others, its outputs differ by (Hassibi and Stork's
optimal brain surgeon, for sets of columns)

    min over W' of  tr((W - W') H (W - W')^T)  =  tr(W_S ((H^-1)_SS)^-1 W_S^T),
    W'_K = W_K - W_S ((H^-1)_SS)^-1 (H^-1)_SK.

Costs of one layer are no measure for those of another. So those of each layer are scaled to what
the model's end loses, 1 - mean cos(h_L, h'_L), when half of what can go is gone; our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.pruning import structured
from quant.pruning.structured import unfit
from quant.solvers.base import Memory
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
    """damping     share of the mean of H's diagonal that is added to it.
    compensate  whether the weights that stay make up for those that go.
    """

    damping: float = 0.01
    compensate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping > 0:
            raise ValueError(f"damping={self.damping} leaves H singular; use 0.01, the default.")


DEFAULT_OPTIONS = Options()


def prune(running: Running, options: Options = DEFAULT_OPTIONS) -> Cut:
    """Return what to remove of a model whose blocks are in memory, and the weights of readers."""
    from quant.blocks import weight_matrix

    parts = structured.parts_of(running, options)
    ladders: list[list[Ladder]] = [[] for _ in parts]
    hidden, end = running.start(), running.end()
    for index in range(len(running)):
        before = hidden
        hidden, seen = running.watched(index, before, [kind[index].reader for kind in parts])
        for kind, found in zip(parts, ladders, strict=True):
            part = kind[index]
            weight = weight_matrix(running.source.model.get_submodule(part.reader)).double()
            hessian = damped(gram(seen[part.reader]), options.damping)
            steps = ladder(part, weight, hessian, running.scheme)
            trial = Trial(running, part, before, end)
            found.append(scaled(steps, trial, weight, hessian, options.compensate))
    removed = list(structured.choose(running, options, parts, ladders))
    weights = _compensated(running, removed, options) if options.compensate else {}
    return structured.cut_of(removed, weights)


@dataclass(frozen=True)
class Trial:
    """Measures what the model's end loses without units of a part.

    before  hidden states of the whole model before the block of the part, by window.
    end     those after its last block.
    """

    running: Running
    part: Part
    before: list[Tensor]
    end: list[Tensor]

    def loss(self, units: list[int], weight: Tensor) -> float:
        """Return 1 - mean cos(h_L, h'_L) with this weight [out, in] in place of the reader's."""
        from quant.blocks import set_weight_matrix, weight_matrix
        from quant.pruning.running import lost, masked

        running, name = self.running, self.part.reader
        layer = running.source.model.get_submodule(name)
        own = weight_matrix(layer).clone()
        set_weight_matrix(layer, weight, name)
        try:
            with masked(layer, self.part.left(units)):
                hidden = running.through(self.part.block, self.before)
        finally:
            set_weight_matrix(layer, own, name)
        for later in range(self.part.block + 1, len(running)):
            hidden = running.through(later, hidden)
        return lost(self.end, hidden)


def scaled(
    given: Ladder, trial: Trial, weight: Tensor, hessian: Tensor, compensate: bool
) -> Ladder:
    """Return a ladder with its scores times one factor: at its middle, they are the end's loss."""
    import torch

    from quant.pruning.allocate import Ladder

    middle = (len(given.steps) + 1) // 2
    units = given.removed(middle)
    if compensate and units:
        weight, _ = without(weight, torch.linalg.inv(hessian), trial.part.inputs(units))
    if not given.scores[middle] > 0:  # nothing can go, or what goes has no part in the outputs
        return given
    factor = trial.loss(units, weight) / given.scores[middle]
    return Ladder(given.steps, [factor * score for score in given.scores])


def ladder(part: Part, weight: Tensor, hessian: Tensor, scheme: Scheme) -> Ladder:
    """Return the units of a part in the order in which they go, with what their removal costs.

    Columns go a step at a time, those of the least cost alone; heads go group by group.
    """
    import torch

    from quant.pruning.allocate import Ladder
    from quant.pruning.units import Heads

    left = list(range(part.unit.groups if isinstance(part.unit, Heads) else part.unit.width))
    weight, inverse = weight.clone(), torch.linalg.inv(hessian)
    steps, scores, total = [], [0.0], 0.0
    sizes = structured.steps_of(part, left, scheme)
    for step in sizes:
        if isinstance(part.unit, Heads):
            costs = torch.tensor([cost(weight, inverse, part.inputs([group])) for group in left])
        else:
            diagonal = inverse.diagonal()[left]
            costs = weight[:, left].square().sum(0) / diagonal
        chosen = [left[place] for place in costs.argsort(stable=True)[: len(step)].tolist()]
        inputs = part.inputs(chosen)
        total += cost(weight, inverse, inputs)
        weight, inverse = without(weight, inverse, inputs)
        left = [each for each in left if each not in set(chosen)]
        steps.append(chosen)
        scores.append(total)
    return Ladder(steps, scores)


def cost(weight: Tensor, inverse: Tensor, removed: list[int]) -> float:
    """Return tr(W_S ((H^-1)_SS)^-1 W_S^T) for W [out, in], H^-1 [in, in] and the inputs S."""
    import torch

    part = weight[:, removed]
    solved = torch.linalg.solve(inverse[removed][:, removed], part.T)
    return float((part.T * solved).sum())


def without(weight: Tensor, inverse: Tensor, removed: list[int]) -> tuple[Tensor, Tensor]:
    """Return W' and the inverse of H without the inputs S.

    Their places stay, so that inputs keep their numbers: zeros, and ones on the diagonal.
    """
    import torch

    rows = inverse[removed]  # (H^-1)_S
    factor = torch.linalg.solve(rows[:, removed], rows)
    weight, inverse = weight - weight[:, removed] @ factor, inverse - rows.T @ factor
    weight[:, removed] = 0
    inverse[removed, :] = 0
    inverse[:, removed] = 0
    inverse[removed, removed] = 1
    return weight, inverse


def gram(inputs: list[Tensor]) -> Tensor:
    """Return sum x x^T, float64 [in, in], over all tokens of inputs [1, tokens, in]."""
    rows = [each.double().flatten(0, -2) for each in inputs]
    return sum(each.T @ each for each in rows)  # type: ignore[return-value]


def damped(hessian: Tensor, share: float) -> Tensor:
    """Return H with a share of the mean of its diagonal added to it."""
    hessian = hessian.clone()
    hessian.diagonal().add_(share * hessian.diagonal().mean())
    return hessian


def _compensated(
    running: Running, removed: list[tuple[Part, list[int]]], options: Options
) -> dict[str, Tensor]:
    """Return the weights of readers, on the inputs of the whole model, in the model's dtype."""
    import torch

    from quant.blocks import weight_matrix

    found, hidden = {}, running.start()
    for index in range(len(running)):
        here = [pair for pair in removed if pair[0].block == index]
        hidden, seen = running.watched(index, hidden, [part.reader for part, _ in here])
        for part, units in here:
            weight = weight_matrix(running.source.model.get_submodule(part.reader))
            inverse = torch.linalg.inv(damped(gram(seen[part.reader]), options.damping))
            changed, _ = without(weight.double(), inverse, part.inputs(units))
            found[part.reader] = changed.to(weight.dtype)
    return found


def describe(options: Options) -> list[str]:
    """Return the budget, and options that differ from the defaults, in the words of tables."""
    found = options.words()
    if options.damping != DEFAULT_OPTIONS.damping:
        found.append(f"damp {options.damping:g}")
    return found if options.compensate else [*found, "not compensated"]


TRANSFORM = Transform(
    name="obs_pruning",
    label="OBS pruning",
    prune=prune,
    unfit=unfit,
    options=Options,
    describe=describe,
    # W, what it becomes and their difference; H, damped, inverted, and the next inverse.
    memory=Memory(weights=3, prepared=5),
)
