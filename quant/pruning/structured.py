"""Structured pruning within a budget: columns of FFNs and groups of heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from quant.pruning import budget
from quant.pruning.budget import alike, budget_of, stored_bits
from quant.pruning.units import Columns, Heads

if TYPE_CHECKING:
    from torch import Tensor

    from quant.memory.shapes import ModelFacts
    from quant.pruning.allocate import Ladder
    from quant.pruning.cut import Cut
    from quant.pruning.running import Running
    from quant.scheme import Scheme


@dataclass(frozen=True)
class Options(budget.Options):
    """columns, heads  whether columns of FFNs, and groups of heads, are removed."""

    columns: bool = True
    heads: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.columns and not self.heads:
            raise ValueError("columns=false and heads=false leave nothing to remove; use one.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that are removed."""
        return tuple(kind for kind in ("columns", "heads") if getattr(self, kind))

    def words(self) -> list[str]:
        """Return the budget, and options that differ from the defaults, for tables."""
        alone = [f"{self.kinds[0]} only"] if len(self.kinds) == 1 else []
        return [*super().words(), *alone]


def unfit(options: Options, facts: ModelFacts, scheme: Scheme) -> str | None:
    """Say why parts of a model cannot be removed within a budget; None if they can."""
    saved = 0.0
    for kind in options.kinds:
        unit: Columns | Heads | str = getattr(facts, kind)
        if isinstance(unit, str):
            rest = [f"set {kind}=false, or " for other in options.kinds if other != kind]
            return (
                f"cannot remove {kind} of {facts.model_type}: {unit}; {''.join(rest)}use "
                "transform=[block_removal]"
            )
        step = _step(unit, scheme)
        for count in range(1, most(unit, scheme) + 1):
            inputs = unit.shapes(count * step)[-1][1]
            why = scheme.without_head.refusal(inputs)
            if why is not None:
                return f"cannot leave a layer with {inputs} inputs, to which the scheme {why}"
        saved += facts.shape.blocks * _saved(unit, most(unit, scheme), scheme)
    if not alike(facts.coverage, facts.shape):
        return f"cannot say what a block of {facts.model_type} takes, because its blocks differ"
    layers = [facts.shape.layers] * facts.shape.blocks
    found = budget_of(options.bits, facts.coverage, facts.shape, layers, scheme)
    return found.refusal(saved, "every block keeps some of what is removed")


@dataclass(frozen=True)
class Part:
    """The units of one kind in a block.

    block  its number.
    name   its name in the model.
    """

    block: int
    name: str
    unit: Columns | Heads

    @property
    def reader(self) -> str:
        """Full name of the layer whose inputs the units make."""
        return f"{self.name}.{self.unit.reader}"

    def inputs(self, removed: Sequence[int]) -> list[int]:
        """Return the inputs of `reader` that units make."""
        if isinstance(self.unit, Columns):
            return list(removed)
        return [column for group in removed for column in self.unit.columns(group)]

    def left(self, removed: Sequence[int]) -> Tensor:
        """Return the inputs of `reader` that stay, int64, without these units."""
        return {layer: left for _, layer, left in self.unit.kept(self.name, removed)}[self.reader]


Parts = list[list[Part]]
"""Of each kind, those of every block."""


def parts_of(running: Running, options: Options) -> Parts:
    """Return the units of a model; the plan has refused models without."""
    from quant.errors import ModelStructureError
    from quant.pruning.units import find_columns, find_heads, of_all

    blocks, found = running.source.blocks, []
    for kind in options.kinds:
        unit: Columns | Heads | str = of_all(
            find_columns if kind == "columns" else find_heads, blocks.modules
        )
        if isinstance(unit, str):
            raise ModelStructureError(f"{kind} of {blocks.name} cannot be removed: {unit}.")
        found.append([Part(index, blocks.block_name(index), unit) for index in range(len(blocks))])
    return found


def steps_of(part: Part, order: Sequence[int], scheme: Scheme) -> list[list[int]]:
    """Return the units that can go, in steps, given all of them in the order in which they go."""
    size = _step(part.unit, scheme)
    return [list(order[at * size : (at + 1) * size]) for at in range(most(part.unit, scheme))]


def choose(
    running: Running, options: Options, parts: Parts, ladders: Sequence[Sequence[Ladder]]
) -> Iterator[tuple[Part, list[int]]]:
    """Yield every part that loses something, and its units that go, for the least sum of scores."""
    from quant.pruning.allocate import allocate

    scheme, found = running.scheme, running.budget(options.bits)
    units = [each[0].unit for each in parts]
    tables = [
        [_saved(unit, count, scheme) for count in range(most(unit, scheme) + 1)] for unit in units
    ]
    largest = [max((b - a for a, b in pairwise(t)), default=0.0) for t in tables]

    def fits(counts: Sequence[Sequence[int]]) -> bool:
        gone = sum(t[count] for t, each in zip(tables, counts, strict=True) for count in each)
        return gone >= found.excess

    counts = allocate(ladders, largest, found.excess, fits)
    for kind, given, taken in zip(parts, ladders, counts, strict=True):
        for part, ladder, count in zip(kind, given, taken, strict=True):
            if count:
                yield part, ladder.removed(count)


def cut_of(
    removed: Sequence[tuple[Part, list[int]]], weights: dict[str, Tensor] | None = None
) -> Cut:
    """Return the cut that removes units; weights: of readers that make up for what is removed."""
    from quant.pruning.cut import Cut

    rows: dict[str, dict[str, Any]] = {"outputs": {}, "inputs": {}}
    total: dict[str, int] = {}
    for part, units in removed:
        kind = "FFN columns" if isinstance(part.unit, Columns) else "groups of heads"
        total[kind] = total.get(kind, 0) + len(units)
        for side, layer, left in part.unit.kept(part.name, units):
            rows[side][layer] = left
    said = ", ".join(f"{count} {kind}" for kind, count in total.items())
    return Cut(outputs=rows["outputs"], inputs=rows["inputs"], weights=weights or {}, said=said)


def _step(unit: Columns | Heads, scheme: Scheme) -> int:
    return unit.step(scheme) if isinstance(unit, Columns) else 1


def most(unit: Columns | Heads, scheme: Scheme) -> int:
    """Number of steps in which units can go."""
    return unit.most(scheme) if isinstance(unit, Columns) else unit.most


def _saved(unit: Columns | Heads, steps: int, scheme: Scheme) -> float:
    """Bits that a block saves without so many steps of a unit."""
    layers, removed = scheme.without_head, steps * _step(unit, scheme)
    return stored_bits(unit.shapes(0), layers) - stored_bits(unit.shapes(removed), layers)
