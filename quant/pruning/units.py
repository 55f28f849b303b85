"""Units: the parts of a block that can be removed without the rest, and what the model loses.

Columns of an FFN go with the rows that make them. Heads go by groups: a key-value head with all
heads that share it. Layers are found by what transformers calls them; a run compares what is left
with the masked model (quant.pruning.source), so that a wrong guess is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from quant.scheme import Scheme

U = TypeVar("U")
# What makes the inputs of the last layer of an FFN, and that layer.
_FFNS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)
_READERS, _WRITERS = ("q_proj", "k_proj", "v_proj"), ("o_proj", "dense")


@dataclass(frozen=True)
class Columns:
    """An FFN, by names in its block.

    makers  layers whose rows make the columns of `reader`, one each.
    width   number of columns.
    hidden  features of the hidden states.
    """

    makers: tuple[str, ...]
    reader: str
    width: int
    hidden: int

    def step(self, scheme: Scheme) -> int:
        """Columns that go together: what leaves groups and packed words whole."""
        return math.lcm(32, scheme.group_size or 1)

    def most(self, scheme: Scheme) -> int:
        """Number of steps that leave some columns."""
        return (self.width - 1) // self.step(scheme)

    def shapes(self, removed: int) -> list[tuple[int, int]]:
        """Return (outputs, inputs) of its layers without so many columns."""
        left = self.width - removed
        return [*[(left, self.hidden)] * len(self.makers), (self.hidden, left)]

    def kept(self, block: str, removed: Sequence[int]) -> Iterator[tuple[str, str, Tensor]]:
        """Yield ("outputs" or "inputs", layer, what stays) without these columns."""
        left = _left(self.width, removed)
        for maker in self.makers:
            yield "outputs", f"{block}.{maker}", left
        yield "inputs", f"{block}.{self.reader}", left


@dataclass(frozen=True)
class Heads:
    """The heads of an attention, by names of layers in its block.

    groups    key-value heads.
    size      heads that share a key-value head.
    features  of a head.
    hidden    features of the hidden states.
    """

    query: str
    key: str
    value: str
    reader: str
    groups: int
    size: int
    features: int
    hidden: int

    @property
    def most(self) -> int:
        """Number of groups that can go."""
        return self.groups - 1

    def shapes(self, removed: int) -> list[tuple[int, int]]:
        """Return (outputs, inputs) of its layers without so many groups."""
        pairs = (self.groups - removed) * self.features
        heads = pairs * self.size
        return [*[(pairs, self.hidden)] * 2, (heads, self.hidden), (self.hidden, heads)]

    def columns(self, group: int) -> list[int]:
        """Return the columns of `reader` that a group makes."""
        width = self.size * self.features
        return list(range(group * width, (group + 1) * width))

    def kept(self, block: str, removed: Sequence[int]) -> Iterator[tuple[str, str, Tensor]]:
        """Yield ("outputs" or "inputs", layer, what stays) without these groups."""
        width = self.size * self.features
        left = _left(self.groups * width, [j for g in removed for j in self.columns(g)])
        pairs = [g * self.features + j for g in removed for j in range(self.features)]
        for layer in (self.key, self.value):
            yield "outputs", f"{block}.{layer}", _left(self.groups * self.features, pairs)
        yield "outputs", f"{block}.{self.query}", left
        yield "inputs", f"{block}.{self.reader}", left


def find_columns(block: nn.Module) -> Columns | str:
    """Return the FFN of a block, or why its columns cannot be removed."""
    layers = _linears(block)
    for makers, reader in _FFNS:
        found = {each: layers.get(each, []) for each in (*makers, reader)}
        if not found[reader]:
            continue
        if any(len(names) > 1 for names in found.values()):
            return "its blocks have more than one FFN (a mixture of experts)"
        if not all(found.values()):
            continue
        shapes = {each: _shape(block, found[each][0]) for each in found}
        hidden, width = shapes[reader]
        if all(shapes[maker] == (width, hidden) for maker in makers):
            return Columns(
                tuple(found[maker][0] for maker in makers), found[reader][0], width, hidden
            )
    return "its FFNs are none that are known (gate, up and down projections, or two layers)"


def find_heads(block: nn.Module) -> Heads | str:
    """Return the heads of a block's attention, or why they cannot be removed."""
    layers = _linears(block)
    found = [layers.get(each, []) for each in _READERS]
    out = [name for each in _WRITERS for name in layers.get(each, [])]
    if any(len(names) != 1 for names in [*found, out]):
        return "its attention has no projections of queries, keys, values and outputs of their own"
    query, key, value, reader = (names[0] for names in [*found, out])
    attention = block.get_submodule(query.rpartition(".")[0])
    features = getattr(attention, "head_dim", None)
    if not isinstance(features, int) or hasattr(attention, "num_heads"):
        return "its attention counts its heads by config.json, the same in all blocks"
    (width, hidden), (pairs, _), (values, _) = (_shape(block, e) for e in (query, key, value))
    if pairs != values or pairs % features or width % pairs:
        return f"its queries, keys and values ({width}, {pairs}, {values}) are no groups of heads"
    if _shape(block, reader) != (hidden, width):
        return "its outputs are not those of its heads"
    groups = pairs // features
    return Heads(query, key, value, reader, groups, width // pairs, features, hidden)


def of_all(find: Callable[[nn.Module], U | str], blocks: Iterable[nn.Module]) -> U | str:
    """Return the unit that all blocks have, or why they have none in common."""
    first, *others = [find(block) for block in blocks]
    return first if all(each == first for each in others) else "its blocks differ"


def _linears(block: nn.Module) -> dict[str, list[str]]:
    """Return the nn.Linear modules of a block by the last part of their names."""
    from torch import nn

    found: dict[str, list[str]] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            found.setdefault(name.rpartition(".")[2], []).append(name)
    return found


def _shape(block: nn.Module, layer: str) -> tuple[int, int]:
    weight: Tensor = block.get_submodule(layer).weight  # type: ignore[assignment]
    outputs, inputs = weight.shape
    return int(outputs), int(inputs)


def _left(width: int, removed: Sequence[int]) -> Tensor:
    import torch

    left = torch.ones(width, dtype=torch.bool)
    left[list(removed)] = False
    return left.nonzero()[:, 0]
